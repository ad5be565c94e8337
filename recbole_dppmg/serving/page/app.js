// The page: choose someone, see their taste and recommendations, watch the cards come, swap tokens.
import { Problem, call, follow, get, pathOf } from "./api.js";
import { combobox } from "./combobox.js";
import { cardView, liked, past, tokens } from "./view.js";

const $ = (id) => document.getElementById(id);
const STEP = 8;
const MOST = 48;

// `who` is {user} or {history}; `through` the user whose tokens the cards use instead, or null.
const state = { who: null, chosen: [], k: STEP, through: null, views: [], own: new Map(), jobs: new Set(), work: null };

function problem(error) {
  if (error?.name === "AbortError") return;
  $("problem").textContent = error.message;
  $("problem").hidden = false;
}

const guarded = (task) => (...given) => { $("problem").hidden = true; return Promise.resolve(task(...given)).catch(problem); };

// Give up what is not wanted any more: its places in the queue are others'.
function abandon() {
  state.work?.abort();
  for (const job of state.jobs) call("DELETE", pathOf("jobs", job)).catch(() => {});
  state.jobs.clear();
  state.work = new AbortController();
  return state.work.signal;
}

async function open(who) {
  const signal = abandon();
  Object.assign(state, { who, k: STEP, through: null, views: [], own: new Map() });
  $("other").value = "";
  const found = await recommendations(signal);
  const user = who.user ? await get(pathOf("users", who.user), signal) : null;
  $("profile-title").textContent = user ? `User ${user.id}` : "Someone new";
  $("profile-note").textContent = user
    ? `${user.history_size} items in their history`
    : "Nothing was trained: this taste follows from the choices at once";
  $("history").replaceChildren(...(user ? user.history : state.chosen).map(past));
  $("tokens").replaceChildren(...tokens(found.tokens));
  $("profile").hidden = $("results").hidden = false;
  $("cards").replaceChildren();
  window.history.replaceState(null, "", who.user ? `#user=${encodeURIComponent(who.user)}` : "#new");
  $("profile-title").focus({ preventScroll: true });
  $("profile").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  await add(found.items, signal);
}

function recommendations(signal) {
  if (state.who.user) return get(`${pathOf("users", state.who.user, "recommendations")}?k=${state.k}`, signal);
  return call("POST", "/v1/recommendations", { body: { history: state.who.history, k: state.k }, signal }).then((a) => a.value);
}

async function add(items, signal) {
  const views = items.slice(state.views.length).map(cardView);
  state.views.push(...views);
  $("cards").append(...views.map((view) => view.node));
  $("more").hidden = state.k >= MOST || items.length < state.k;
  told();
  await make(views, signal);
}

async function more() {
  state.k = Math.min(MOST, state.k + STEP);
  const found = await recommendations(state.work.signal);
  await add(found.items, state.work.signal);
}

// Ask for each view's card; those that are not known yet come in as they are made.
async function make(views, signal) {
  const through = state.through;
  const person = through ? { user: through } : state.who;
  const waiting = new Map();
  const done = (view, card) => {
    view.show(card);
    if (card.complete) {
      view.done = true;
      if (!through) state.own.set(view.item.id, card);
    }
    told();
  };
  const failed = (view, message) => { view.fail(message, guarded(() => make([view], signal))); view.done = true; told(); };
  for (const view of views) {
    view.done = false;
    try {
      const { status, value } = await ask({ item: view.item.id, ...person }, signal);
      if (status === 200) done(view, value);
      else { waiting.set(value.id, view); state.jobs.add(value.id); }
    } catch (error) {
      if (error.name === "AbortError") return;
      failed(view, error.message);
    }
  }
  await follow([...waiting.keys()], (job) => {
    const view = waiting.get(job.id);
    done(view, job.card);
    if (["queued", "running"].includes(job.state)) return;
    state.jobs.delete(job.id);
    if (job.state !== "done") failed(view, job.error ?? "The card was not made.");
  }, signal);
}

async function ask(body, signal) {
  for (let tries = 0; ; tries += 1) {
    try {
      return await call("POST", "/v1/cards", { body, signal });
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 429 || tries > 20) throw error;
      $("status").textContent = "Many cards are being made; waiting for a place …";
      await new Promise((go) => setTimeout(go, 1000 * error.retryAfter));
      signal.throwIfAborted();
    }
  }
}

function told() {
  const ready = state.views.filter((view) => view.done).length;
  $("status").textContent = ready < state.views.length ? `${ready} of ${state.views.length} cards ready` : `${ready} cards`;
}

async function swap(user) {
  const signal = abandon();
  state.through = user;
  $("swap-back").hidden = $("swapped").hidden = !user;
  $("swapped").textContent = user ? `The same items, now with the tokens of user ${user}.` : "";
  for (const view of state.views) {
    view.reset();
    view.compare(user ? state.own.get(view.item.id) : null);
  }
  if (!user) $("other").value = "";
  $("cards").classList.toggle("through", Boolean(user));
  await make(state.views, signal);
}

function choose(item) {
  if (!state.chosen.some((other) => other.id === item.id)) state.chosen.push(item);
  $("item").value = "";
  drawChosen();
}

function drawChosen() {
  $("liked").replaceChildren(...state.chosen.map((item) => liked(item, () => {
    state.chosen = state.chosen.filter((other) => other.id !== item.id);
    drawChosen();
    $("item").focus();
  })));
  $("recommend").disabled = state.chosen.length === 0;
}

function mode(value) {
  $("known").hidden = value !== "known";
  $("new").hidden = value !== "new";
}

const users = async (query) => (await get(`/v1/users?limit=8&query=${encodeURIComponent(query.trim())}`)).map((id) => ({ value: id, label: `User ${id}` }));
const items = async (query) => query.trim() === "" ? [] : (await get(`/v1/items?limit=8&query=${encodeURIComponent(query.trim())}`)).map((item) => ({
  value: item, label: item.title, image: item.image, more: [item.year, ...item.attributes].filter(Boolean).join(" · "),
}));

async function start() {
  const openUser = guarded(async (id) => { $("user").value = id; await open({ user: id }); });
  combobox($("user"), users, (option) => openUser(option.value));
  combobox($("item"), items, (option) => choose(option.value));
  combobox($("other"), users, guarded(async (option) => { $("other").value = option.value; await swap(option.value); }));
  $("random").addEventListener("click", guarded(async () => {
    const found = await get(`/v1/users?limit=50&query=${1 + Math.floor(Math.random() * 9)}`);
    const all = found.length ? found : await get("/v1/users?limit=50");
    await openUser(all[Math.floor(Math.random() * all.length)]);
  }));
  $("recommend").addEventListener("click", guarded(() => open({ history: state.chosen.map((item) => item.id) })));
  $("swap-back").addEventListener("click", guarded(() => swap(null)));
  $("more").addEventListener("click", guarded(more));
  for (const radio of document.querySelectorAll("input[name=mode]")) {
    radio.addEventListener("change", () => mode(radio.value));
    if (radio.checked) mode(radio.value); // a browser keeps the choice over a reload
  }
  addEventListener("pagehide", abandon);

  const about = await get("/v1/bundle");
  const number = (n) => n.toLocaleString("en");
  $("about").textContent = `${number(about.users)} users · ${number(about.items)} items` +
    Object.entries(about.heads).map(([modality, head]) => ` · ${modality} by ${head}`).join("");
  $("notes").textContent = about.notes.join(" ");
  $("swap").hidden = Object.keys(about.heads).length === 0;
  const named = new URLSearchParams(location.hash.slice(1)).get("user");
  if (named) await openUser(named);
}

guarded(start)();
