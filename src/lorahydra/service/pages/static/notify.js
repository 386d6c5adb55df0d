// "Tell me when it is done": a notification of the browser, if the reader asks for it. It comes from this page, which
// is told of the end by the API's events, also in a tab that is not seen.
"use strict";

function startNotifying() {
  const place = document.getElementById("notify");
  if (!place || !("Notification" in window) || !window.isSecureContext) {
    if (place) place.hidden = true; // over plain HTTP from another machine, browsers have no notifications
    return;
  }
  const { job, denied, needs, ...texts } = place.dataset;
  const button = place.querySelector("button");
  const said = place.querySelector("[role=status]");
  const key = `lorahydra-notify-${job}`;
  let events = null;

  function show(isOn, text) {
    button.setAttribute("aria-pressed", String(isOn));
    button.textContent = isOn ? button.dataset.off : button.dataset.ask;
    said.textContent = text;
  }

  function stop() {
    if (events) events.close();
    events = null;
    localStorage.removeItem(key);
  }

  function listen() {
    localStorage.setItem(key, "yes"); // the page may be loaded again meanwhile
    show(true, needs);
    if (events) return;
    events = new EventSource(`/api/v1/fine-tunes/${job}/events`);
    events.addEventListener("state", (event) => {
      const text = texts[JSON.parse(event.data).state];
      if (!text) return; // it has not ended
      stop();
      place.hidden = true;
      const notification = new Notification(document.querySelector("h1").textContent, { body: text, tag: key });
      notification.addEventListener("click", () => {
        window.focus();
        notification.close();
      });
    });
  }

  button.addEventListener("click", async () => {
    if (events) {
      stop();
      show(false, "");
    } else if ((await Notification.requestPermission()) === "granted") {
      listen();
    } else {
      show(false, denied);
    }
  });

  if (localStorage.getItem(key) && Notification.permission === "granted") listen();
}

startNotifying();
