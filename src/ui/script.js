// The pages work without this script. It replaces <main> when a cache changes, and shows the plan while a
// person types. An element of <main> that can have the focus needs an ID, by which it gets the focus back.
"use strict";

const FRAGMENT = { "X-Larder-Fragment": "1" };
// Minimum time between two requests of the same page, and the pause in typing before a plan; milliseconds.
const REFRESH = 1000;
const PAUSE = 700;

let source = null;
let timer = 0;
let last = 0;
let isWaiting = false;

const main = () => document.getElementById("main");
const isTyping = () => document.activeElement?.matches("main input, main select, main textarea");

async function replaceMain() {
  timer = 0;
  if (isTyping()) {
    isWaiting = true;
    return;
  }
  last = Date.now();
  const response = await fetch(location.href, { headers: FRAGMENT });
  if (response.status === 401) {
    location.assign("/ui/sign-in");
    return;
  }
  if (!response.ok && response.status !== 404) return;
  const parsed = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = parsed.getElementById("main");
  if (!fresh || isTyping()) return;
  const old = main();
  const focused = document.activeElement?.id;
  const scrolled = [...old.querySelectorAll(".scroll[id]")].map((e) => [e.id, e.scrollLeft]);
  const change = fresh.dataset.live !== old.dataset.live ? fresh.dataset.live : null;
  old.replaceWith(document.adoptNode(fresh));
  for (const [id, left] of scrolled) {
    const element = document.getElementById(id);
    if (element) element.scrollLeft = left;
  }
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  if (change) document.getElementById("announce").textContent = change;
}

function schedule() {
  if (timer) return;
  timer = setTimeout(() => replaceMain().catch(() => {}), Math.max(50, last + REFRESH - Date.now()));
}

// A page of one cache ignores the others.
function concerns(event) {
  const one = location.pathname.match(/^\/ui\/caches\/([0-9a-f-]+)/);
  return !one || one[1] === event.data;
}

function listen() {
  const isWanted = main()?.dataset.live !== undefined && !document.hidden;
  if (isWanted && !source) {
    source = new EventSource("/ui/events");
    for (const name of ["cache", "removed"]) {
      source.addEventListener(name, (event) => concerns(event) && schedule());
    }
    source.addEventListener("error", () => {
      // The browser reconnects, unless the session has ended.
      if (source?.readyState !== EventSource.CLOSED) return;
      source = null;
      schedule();
      setTimeout(listen, 10 * REFRESH);
    });
  } else if (!isWanted && source) {
    // A hidden page needs no stream.
    source.close();
    source = null;
  }
}

function showPlans(form) {
  const place = document.getElementById("plan");
  let pause = 0;
  let running = null;
  const ask = async () => {
    if (!form.elements.images.value.trim()) return;
    running?.abort();
    running = new AbortController();
    place.setAttribute("aria-busy", "true");
    try {
      const body = new URLSearchParams(new FormData(form));
      const response = await fetch(form.dataset.plan, { method: "POST", headers: FRAGMENT, body, signal: running.signal });
      const text = await response.text();
      if (response.status === 401) location.assign("/ui/sign-in");
      place.replaceChildren(...new DOMParser().parseFromString(text, "text/html").body.childNodes);
      place.removeAttribute("aria-busy");
    } catch (error) {
      if (error.name !== "AbortError") place.removeAttribute("aria-busy");
    }
  };
  form.addEventListener("input", (event) => {
    if (event.target.name === "name" || event.target.name === "retention_days") return;
    clearTimeout(pause);
    pause = setTimeout(ask, PAUSE);
  });
}

document.addEventListener("visibilitychange", listen);
document.addEventListener("focusout", () => {
  if (!isWaiting) return;
  isWaiting = false;
  schedule();
});
listen();
const form = document.querySelector("form[data-plan]");
if (form) showPlans(form);
