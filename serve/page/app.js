// The page of the search app. All text goes in by textContent: what pins say is not ours to trust.
"use strict";

const $ = (id) => document.getElementById(id);
const PLAIN_URL = /^(https?:\/\/|\/(?!\/))/i; // of pictures: the web's, or our own
let newest = 0; // number of the last search; a late answer of an older one is dropped

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

class Problem extends Error {
  constructor(status, message, retryAfter) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

async function ask(path, body, query) {
  const headers = { "content-type": "application/json" };
  // A proxy may send equal queries to the replica that has them cached.
  if (query) headers["x-query-key"] = encodeURIComponent(query.trim().toLowerCase()).slice(0, 200);
  const token = sessionStorage.getItem("token");
  if (token) headers.authorization = `Bearer ${token}`;
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
  if (answer.status === 401 && !ask.refused) {
    ask.refused = true; // ask once, not for ever
    const given = window.prompt("This search needs a token:");
    if (given) {
      sessionStorage.setItem("token", given);
      return ask(path, body, query);
    }
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer.status, found.message || `error ${answer.status}`, answer.headers.get("retry-after"));
  ask.refused = false;
  return found;
}

function picture(pin) {
  const box = element("div", "picture");
  const letters = element("span", "letters", [...(pin.title || pin.pin_id)].slice(0, 1).join("").toUpperCase());
  if (pin.image_url && PLAIN_URL.test(pin.image_url)) {
    const image = element("img");
    image.alt = pin.title;
    image.loading = "lazy";
    image.addEventListener("error", () => image.replaceWith(letters));
    image.src = pin.image_url;
    box.append(image);
  } else {
    letters.setAttribute("aria-hidden", "true");
    box.append(letters);
  }
  return box;
}

function bar(probs) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "bar");
  svg.setAttribute("viewBox", "0 0 100 1");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", "grades " + probs.map((p, i) => `${i + 1}: ${Math.round(100 * p)}%`).join(", "));
  let left = 0;
  probs.forEach((p, i) => {
    const part = document.createElementNS(svg.namespaceURI, "rect");
    part.setAttribute("class", `p${i + 1}`);
    part.setAttribute("x", left.toFixed(2));
    part.setAttribute("width", (100 * p).toFixed(2));
    part.setAttribute("height", "1");
    svg.append(part);
    left += 100 * p;
  });
  return svg;
}

function why(hit) {
  const list = element("p", "why");
  const line = (name, value) => {
    const row = element("span");
    row.append(element("b", "", `${name} `), document.createTextNode(value));
    list.append(row);
  };
  for (const [field, words] of Object.entries(hit.matched)) line(field.replace("_", " "), words.join(", "));
  if (!Object.keys(hit.matched).length) line("meaning", "no word in common");
  if (hit.teacher_score !== null) line("teacher", hit.teacher_score.toFixed(1));
  if (hit.engagement !== null) line("engagement", `${Math.round(100 * hit.engagement)} of 100`);
  line("found by", hit.sources.join(" and "));
  return list;
}

function card(hit) {
  const pin = element("li", "pin");
  pin.dataset.pin = hit.pin_id;
  const box = picture(hit);
  box.append(element("span", "rank", hit.rank));
  const words = element("div", "words");
  const grade = element("div", "grade");
  grade.append(element("b", "", hit.score.toFixed(1)), bar(hit.probs));
  grade.title = `expected grade ${hit.score.toFixed(2)}, likeliest ${hit.grade}`;
  const more = element("button", "more", "Related");
  more.type = "button";
  more.addEventListener("click", () => go({ related: hit.pin_id }));
  words.append(element("h3", "title", hit.title), element("p", "text", hit.text), grade, why(hit), more);
  pin.append(box, words);
  return pin;
}

function say(text, isError) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
}

function failed(error) {
  const again = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
  say(error instanceof Problem ? `${error.message}.${again}`.replace("..", ".") : "The server does not answer.", true);
}

async function search(query, locale) {
  const number = ++newest;
  $("results").classList.add("waiting");
  say("Searching …");
  try {
    const found = await ask("/v1/search", { query, locale, top_k: 40 }, query);
    if (number !== newest) return;
    $("results").replaceChildren(...found.results.map(card));
    const said = [found.results.length ? `${found.results.length} of ${found.num_candidates} candidates` : "Nothing found"];
    said.push(`${found.took_ms.toFixed(1)} ms`);
    if (found.query.language) said.push(`language ${found.query.language}`);
    const meant = Object.values(found.query.corrections);
    if (meant.length) said.push(`also searched: ${meant.join(", ")}`);
    if (found.degraded) said.push("ranked without the language model, which was too slow");
    say(said.join(" · "));
  } catch (error) {
    if (number !== newest) return;
    $("results").replaceChildren();
    failed(error);
  } finally {
    if (number === newest) $("results").classList.remove("waiting");
  }
}

async function related(pinId) {
  const panel = $("related");
  if (!pinId) {
    panel.hidden = true;
    return;
  }
  try {
    const found = await ask(`/v1/related/${encodeURIComponent(pinId)}?k=12`);
    panel.querySelector("h2").textContent = "Related pins";
    panel.querySelector("ol").replaceChildren(
      ...found.results.map((pin) => {
        const item = element("li", "pin");
        item.dataset.pin = pin.pin_id;
        const words = element("div", "words");
        words.append(element("h3", "title", pin.title), element("span", "text", `cosine ${pin.cosine.toFixed(2)}`));
        item.append(picture(pin), words);
        return item;
      }),
    );
    panel.hidden = false;
  } catch (error) {
    failed(error);
  }
}

// The address holds what is shown, so that it can be shared and gone back from.
function go(changes) {
  const address = new URL(location.href);
  for (const [name, value] of Object.entries(changes)) value ? address.searchParams.set(name, value) : address.searchParams.delete(name);
  history.pushState(null, "", address);
  show();
}

let shown = "";
function show() {
  const asked = new URL(location.href).searchParams;
  const query = asked.get("q") || "";
  const locale = asked.get("locale") || $("locale").value || "en-US";
  $("query").value = query;
  if ([...$("locale").options].some((option) => option.value === locale)) $("locale").value = locale;
  if (query && shown !== `${query}\n${locale}`) search(query, locale);
  shown = `${query}\n${locale}`;
  related(asked.get("related"));
}

async function start() {
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    shown = ""; // the same words again are a new search
    go({ q: $("query").value.trim(), locale: $("locale").value, related: "" });
  });
  $("close").addEventListener("click", () => go({ related: "" }));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("related").hidden) go({ related: "" });
  });
  window.addEventListener("popstate", show);
  try {
    const about = await ask("/v1/about");
    const locales = about.locales.length ? about.locales : ["en-US"];
    $("locale").replaceChildren(...locales.map((locale) => new Option(locale, locale)));
    $("examples").replaceChildren(
      ...about.examples.map((text) => {
        const chip = element("button", "", text);
        chip.type = "button";
        chip.addEventListener("click", () => go({ q: text, related: "" }));
        return chip;
      }),
    );
    $("about").textContent =
      `${about.num_pins.toLocaleString("en")} pins · release ${about.release.slice(0, 8)} · student ${about.student.slice(0, 8)} · queries by ${about.engine}`;
  } catch (error) {
    failed(error);
  }
  show();
}

start();
