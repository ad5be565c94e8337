// A search field with a list of suggestions, as the ARIA practices describe it (combobox with listbox popup).
import { el } from "./view.js";

let count = 0;

// `search(text)` gives options {value, label, image?, more?}; `choose(option)` is called with the one taken.
export function combobox(input, search, choose) {
  const id = `options-${(count += 1)}`;
  const list = el("ul", { id, role: "listbox", class: "options", hidden: true, "aria-label": input.labels[0].textContent });
  input.after(list);
  for (const [name, value] of Object.entries({ role: "combobox", "aria-autocomplete": "list", "aria-controls": id, "aria-expanded": "false", autocomplete: "off", spellcheck: "false" })) {
    input.setAttribute(name, value);
  }
  let options = [];
  let active = -1;
  let asked = 0;
  let timer = 0;

  function show(found) {
    options = found;
    active = -1;
    list.replaceChildren(...found.map((option, n) => {
      const shown = el("li", { id: `${id}-${n}`, role: "option", "aria-selected": "false" }, [
        option.image && el("img", { src: option.image, alt: "", width: 32, height: 32, loading: "lazy" }),
        el("span", {}, option.label),
        option.more && el("small", { class: "soft" }, option.more),
      ]);
      shown.addEventListener("pointerdown", (event) => { event.preventDefault(); take(n); });
      return shown;
    }));
    const open = found.length > 0;
    list.hidden = !open;
    input.setAttribute("aria-expanded", String(open));
    if (!open) input.removeAttribute("aria-activedescendant");
  }

  function mark(n) {
    list.children[active]?.setAttribute("aria-selected", "false");
    active = (n + options.length) % options.length;
    const marked = list.children[active];
    marked.setAttribute("aria-selected", "true");
    marked.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", marked.id);
  }

  function take(n) {
    const option = options[n];
    show([]);
    asked += 1;
    choose(option);
  }

  async function suggest() {
    const mine = (asked += 1);
    const found = await search(input.value).catch(() => []);
    if (mine === asked && document.activeElement === input) show(found);
    return mine === asked;
  }

  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(suggest, 120); });
  input.addEventListener("focus", () => { input.select(); suggest(); });
  input.addEventListener("blur", () => show([]));
  input.addEventListener("keydown", async (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!options.length) await suggest();
      if (options.length) mark(event.key === "ArrowDown" ? active + 1 : active < 0 ? -1 : active - 1);
    } else if (event.key === "Escape" && options.length) {
      event.preventDefault();
      show([]);
    } else if (event.key === "Enter") {
      event.preventDefault();
      clearTimeout(timer);
      if (active < 0 && !(await suggest())) return;
      if (options.length) take(Math.max(active, 0));
    }
  });
}
