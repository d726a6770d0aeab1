// The page of the search app. All text goes in by textContent: what pins say is not ours to trust.
"use strict";

const $ = (id) => document.getElementById(id);
let searching = new AbortController(); // the last search and the last look at related pins:
let relating = new AbortController(); // a late answer of an older one is dropped
let mayAskToken = true; // once for each thing that the user does
let opener = null; // the button that opened the related pins; gets the focus back

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

// As in ray_app/client.py: a proxy may send equal queries to the replica that has them cached. Headers are logged where bodies
// are not, so it is one of 256 numbers, which says nothing of a single query. Browsers hash over https and on localhost; elsewhere the header is left out.
async function queryKey(query) {
  if (!window.crypto.subtle) return {};
  const plain = query.normalize("NFKC").toLowerCase().split(/\s+/).filter(Boolean).join(" ");
  const hash = new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(plain)));
  return { "x-query-key": hash[0].toString(16).padStart(2, "0") };
}

async function ask(path, signal, body) {
  const headers = { "content-type": "application/json", ...(body?.query && (await queryKey(body.query))) };
  const token = sessionStorage.getItem("token");
  if (token) headers.authorization = `Bearer ${token}`;
  const answer = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
  if (answer.status === 401 && newToken(token)) return ask(path, signal, body);
  const found = await answer.json().catch(() => ({}));
  signal.throwIfAborted();
  if (!answer.ok) throw new Problem(answer.status, found.message || `error ${answer.status}`, answer.headers.get("retry-after"));
  return found;
}

// Whether there is another token to try than the one that was refused.
function newToken(refused) {
  if (sessionStorage.getItem("token") !== refused) return true; // another request has just asked
  sessionStorage.removeItem("token");
  if (!mayAskToken) return false;
  mayAskToken = false;
  const given = (window.prompt("This search needs a token:") || "").trim();
  if (!/^[!-~]+$/.test(given)) return false; // fit for a header
  sessionStorage.setItem("token", given);
  return true;
}

const nameOf = (pin) => pin.title || pin.pin_id;

// The web's pictures or our own, and nothing that runs; null: none.
function pictureUrl(text) {
  if (!text || !URL.canParse(text, location.origin)) return null;
  return /^https?:$/.test(new URL(text, location.origin).protocol) ? text : null;
}

function picture(pin) {
  const box = element("div", "picture");
  const letters = element("span", "letters", [...nameOf(pin)].slice(0, 1).join("").toUpperCase());
  letters.setAttribute("aria-hidden", "true");
  const url = pictureUrl(pin.image_url);
  if (url) {
    const image = element("img");
    image.alt = nameOf(pin);
    image.loading = "lazy";
    image.referrerPolicy = "no-referrer"; // whoever hosts it need not know who looks
    image.addEventListener("error", () => image.replaceWith(letters));
    image.src = url;
    box.append(image);
  } else {
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
  for (const [field, words] of Object.entries(hit.matched_terms)) line(field.replaceAll("_", " "), words.join(", "));
  if (!Object.keys(hit.matched_terms).length) line("meaning", "no word in common");
  if (hit.teacher_score !== null) line("teacher", hit.teacher_score.toFixed(1));
  if (hit.engagement !== null) line("engagement", `${Math.round(100 * hit.engagement)} of 100`);
  line("retrieved by", hit.sources.join(" and "));
  return list;
}

function card(hit) {
  const pin = element("li", "pin");
  pin.dataset.pin = hit.pin_id;
  const box = picture(hit);
  box.append(element("span", "rank", hit.rank));
  const words = element("div", "words");
  const grade = element("div", "grade");
  grade.append(element("b", "", hit.score.toFixed(1)), bar(hit.probs), element("span", "likeliest", `grade ${hit.grade}`));
  grade.title = `expected grade ${hit.score.toFixed(2)}, likeliest ${hit.grade}`;
  const more = element("button", "more", "Related");
  more.type = "button";
  more.setAttribute("aria-label", `Related to ${nameOf(hit)}`);
  more.addEventListener("click", () => {
    opener = more;
    go({ related: hit.pin_id });
  });
  words.append(element("h3", "title", nameOf(hit)), element("p", "text", hit.text), grade, why(hit), more);
  pin.append(box, words);
  return pin;
}

function say(text, isError) {
  $("status").textContent = text;
  $("status").className = isError ? "error" : "";
  $("retry").hidden = !isError;
}

function explained(error) {
  if (!(error instanceof Problem)) return "The server does not answer.";
  const again = error.retryAfter ? ` Try again ${/^\d+$/.test(error.retryAfter) ? `in ${error.retryAfter} s` : `after ${error.retryAfter}`}.` : "";
  return `${error.message.replace(/\.$/, "")}.${again}`;
}

async function search(query, locale) {
  searching.abort();
  searching = new AbortController();
  const { signal } = searching;
  if (!query) {
    $("results").replaceChildren();
    $("results").className = "";
    say("");
    return;
  }
  $("results").classList.add("waiting");
  say("Searching …");
  try {
    const found = await ask("/v1/search", signal, { query, locale: locale || "und", top_k: 40 });
    $("results").replaceChildren(...found.results.map(card));
    const said = [found.results.length ? `${found.results.length} of ${found.num_candidates} candidates` : "Nothing found"];
    said.push(`${found.took_ms.toFixed(1)} ms`);
    if (found.query.language) said.push(`language ${found.query.language}`);
    said.push(`release ${found.release.slice(0, 8)}`);
    const meant = Object.values(found.query.corrections);
    if (meant.length) said.push(`also searched: ${meant.join(", ")}`);
    if (found.degraded) said.push("ranked without the language model, which was too slow");
    say(said.join(" · "));
  } catch (error) {
    if (signal.aborted) return;
    $("results").replaceChildren();
    say(explained(error), true);
  }
  $("results").classList.remove("waiting");
}

function closeRelated() {
  const inside = $("related").contains(document.activeElement);
  $("related").hidden = true;
  if (inside) (opener?.isConnected ? opener : $("query")).focus();
  opener = null;
}

async function related(pinId) {
  relating.abort();
  relating = new AbortController();
  const { signal } = relating;
  if (!pinId) {
    closeRelated();
    return;
  }
  let problem = "";
  let pins = [];
  try {
    pins = (await ask(`/v1/related/${encodeURIComponent(pinId)}?k=12`, signal)).results;
    if (!pins.length) problem = "None.";
  } catch (error) {
    if (signal.aborted) return;
    problem = explained(error);
  }
  const from = opener?.closest(".pin")?.querySelector(".title").textContent;
  const panel = $("related");
  panel.querySelector("h2").textContent = from ? `Related to ${from}` : "Related pins";
  panel.querySelector("p").textContent = problem;
  panel.querySelector("ol").replaceChildren(...pins.map(nearPin));
  panel.hidden = false;
  if (opener) $("close").focus();
}

function nearPin(pin) {
  const item = element("li", "pin");
  item.dataset.pin = pin.pin_id;
  const words = element("div", "words");
  words.append(element("h3", "title", nameOf(pin)), element("span", "text", `cosine ${pin.cosine.toFixed(2)}`));
  item.append(picture(pin), words);
  return item;
}

// The address holds what is shown, so that it can be shared and gone back from.
function go(changes) {
  const address = new URL(location.href);
  for (const [name, value] of Object.entries(changes)) value ? address.searchParams.set(name, value) : address.searchParams.delete(name);
  history.pushState(null, "", address);
  show();
}

let shown = "\n";
function show() {
  const asked = new URL(location.href).searchParams;
  const query = asked.get("q") || "";
  const locale = asked.get("locale") || $("locale").value; // "": the app has not said yet what it has
  $("query").value = query;
  if (locale && ![...$("locale").options].some((option) => option.value === locale)) $("locale").add(new Option(locale, locale));
  if (locale) $("locale").value = locale;
  if (shown !== `${query}\n${query && locale}`) search(query, locale);
  shown = `${query}\n${query && locale}`;
  related(asked.get("related"));
}

function submit(query) {
  shown = ""; // the same words again are a new search
  mayAskToken = true;
  if (!$("about").textContent) about();
  go({ q: query.trim(), locale: $("locale").value, related: "" });
}

async function about() {
  try {
    const found = await ask("/v1/about", new AbortController().signal);
    const here = new Set([...found.locales, ...[...$("locale").options].map((option) => option.value)]);
    const chosen = $("locale").value;
    $("locale").replaceChildren(...[...here].map((locale) => new Option(locale, locale)));
    if (chosen) $("locale").value = chosen;
    $("examples").replaceChildren(
      ...found.examples.map((text) => {
        const chip = element("button", "", text);
        chip.type = "button";
        chip.addEventListener("click", () => submit(text));
        return chip;
      }),
    );
    $("about").textContent =
      `${found.num_pins.toLocaleString("en")} pins · release ${found.release.slice(0, 8)} · student ${found.student.slice(0, 8)} · queries by ${found.backend}`;
  } catch (error) {
    say(explained(error), true);
  }
}

async function start() {
  $("search").addEventListener("submit", (event) => {
    event.preventDefault();
    submit($("query").value);
  });
  $("retry").addEventListener("click", () => submit($("query").value));
  $("locale").addEventListener("change", () => $("query").value.trim() && submit($("query").value));
  $("close").addEventListener("click", () => go({ related: "" }));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !$("related").hidden) go({ related: "" });
  });
  window.addEventListener("popstate", show);
  await about();
  show();
}

start();
