// What things look like. Text goes in as text nodes only: titles and generated texts are untrusted.

export function el(tag, attributes = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...[children].flat().filter((child) => child != null && child !== false));
  return made;
}

const titled = (item) => (item.year ? `${item.title} (${item.year})` : item.title);
const NAMES = { text: "Taste in words", image: "Taste in pictures" };
const MEASURES = {
  score: "Recommended by",
  "personalization.text": "Personal, text",
  "personalization.image": "Personal, image",
  consistency: "Text and image agree",
  "fidelity.text": "True to the item, text",
  "fidelity.image": "True to the item, image",
};

export function picture(path, alt, size) {
  return path ? el("img", { src: path, alt, width: size, height: size, loading: "lazy", decoding: "async" }) : el("span", { class: "blank", "aria-hidden": "true" });
}

export function liked(item, remove) {
  const button = el("button", { type: "button", class: "remove", "aria-label": `Remove ${item.title}` }, "×");
  button.addEventListener("click", remove);
  return el("li", {}, [picture(item.image, "", 36), el("span", {}, titled(item)), button]);
}

export const past = (item) => el("li", {}, [picture(item.image, "", 84), el("span", {}, item.title)]);

// A modality's tokens, coarse to fine; each opens to the items that it stands for.
export function tokens(byModality) {
  return Object.entries(byModality).map(([modality, list]) =>
    el("section", { class: `modality ${modality}`, "aria-label": NAMES[modality] ?? modality }, [
      el("h3", {}, NAMES[modality] ?? modality),
      el("ul", {}, list.map((token) => el("li", {}, el("details", {}, [
        el("summary", {}, [el("code", {}, token.name), el("span", {}, token.words.slice(0, 4).join(", ") || token.items[0] || "")]),
        el("p", {}, [el("b", {}, "Stands for "), token.items.slice(0, 6).join(" · ") || "nothing named"]),
        token.words.length > 4 && el("p", {}, [el("b", {}, "Words "), token.words.join(", ")]),
      ])))),
    ]));
}

// One recommendation with its card; `show` fills in what is made, `fail` says what is not.
export function cardView(item) {
  const figure = el("figure", { class: "made" }, [el("span", { class: "shimmer" }), el("figcaption", {}, "generated")]);
  const before = el("figure", { class: "before", hidden: true });
  const words = el("p", { class: "words" }, [el("span", { class: "line" }), el("span", { class: "line" }), el("span", { class: "line short" })]);
  const formerWords = el("details", { class: "former", hidden: true });
  const scores = el("dl", { class: "scores" });
  const article = el("article", { class: "card", "aria-busy": "true", "data-item": item.id }, [
    el("div", { class: "pictures" }, [
      figure,
      el("div", { class: "aside" }, [
        el("figure", {}, [picture(item.image, `Catalogue image of ${item.title}`, 96), el("figcaption", {}, "catalogue")]),
        before,
      ]),
    ]),
    el("div", { class: "body" }, [
      el("h3", {}, titled(item)),
      el("p", { class: "soft kinds" }, item.attributes.join(" · ")),
      words, formerWords, scores,
    ]),
  ]);

  function show(card) {
    if (card.image) {
      const image = el("img", { src: card.image, alt: `Generated image of ${item.title}`, width: 512, height: 512, decoding: "async" });
      figure.replaceChildren(image, figure.lastChild);
    }
    if (card.text) words.replaceChildren(card.text);
    if (!card.complete) return;
    article.setAttribute("aria-busy", "false");
    article.dataset.card = card.id;
    const measured = Object.entries({ score: item.score, ...card.scores });
    scores.replaceChildren(...measured.flatMap(([name, value]) => [
      el("dt", {}, MEASURES[name] ?? name), el("dd", {}, value.toFixed(2).replace(/^-0\.00$/, "0.00")),
    ]));
  }

  function reset() {
    article.setAttribute("aria-busy", "true");
    delete article.dataset.card;
    figure.replaceChildren(el("span", { class: "shimmer" }), figure.lastChild);
    words.replaceChildren(el("span", { class: "line" }), el("span", { class: "line" }), el("span", { class: "line short" }));
    scores.replaceChildren();
  }

  function fail(message, again) {
    article.setAttribute("aria-busy", "false");
    figure.querySelector(".shimmer")?.remove();
    const button = el("button", { type: "button", class: "quiet" }, "Try again");
    button.addEventListener("click", () => { reset(); again(); });
    words.replaceChildren(el("span", { class: "failed" }, message), " ", button);
  }

  // What the card was with the user's own tokens, to compare with; null: nothing to compare.
  function compare(card) {
    before.hidden = formerWords.hidden = !card;
    if (!card) return;
    before.replaceChildren(picture(card.image, `${item.title} with their own tokens`, 96), el("figcaption", {}, "before"));
    formerWords.replaceChildren(el("summary", {}, "Before"), card.text ?? "");
  }

  return { item, node: el("li", {}, article), show, reset, fail, compare };
}
