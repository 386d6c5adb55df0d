// The chat with a fine-tuned model and its base model, each with its own conversation. Without this script the form
// asks both one question at a time.
"use strict";

function startChat() {
  const form = document.getElementById("ask");
  if (!form || form.dataset.ready) return;
  form.dataset.ready = "yes";
  const [message, turns, template] = ["message", "turns", "turn"].map((id) => document.getElementById(id));
  const [send, stop, again] = ["send", "stop", "again"].map((id) => document.getElementById(id));
  const { waiting, failed, stopped, lost, long } = form.dataset;
  const sides = ["tuned", "untuned"];
  let conversations = { tuned: [], untuned: [] };
  let running = null; // aborts the answers that are being written

  function busy(isBusy) {
    send.disabled = isBusy;
    stop.disabled = !isBusy;
    again.disabled = isBusy || !turns.children.length;
    turns.setAttribute("aria-busy", String(isBusy));
  }

  // The process starts while the page is being read, and the model is loaded while the question is being typed.
  const prepare = (query = "") => fetch(`${form.dataset.prepare}${query}`, { method: "POST" }).catch(() => {});
  prepare("?load=false");
  message.addEventListener("focus", () => prepare(), { once: true });

  message.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  stop.addEventListener("click", () => running && running.abort());

  again.addEventListener("click", () => {
    conversations = { tuned: [], untuned: [] };
    turns.replaceChildren();
    busy(false);
    message.focus();
  });

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const question = message.value.trim();
    if (running || !question) return;
    running = new AbortController();
    const turn = template.content.firstElementChild.cloneNode(true);
    turn.querySelector(".asked").textContent = question;
    turns.append(turn);
    message.value = "";
    busy(true);
    const places = Object.fromEntries(
      sides.map((side) => [side, turn.querySelector(`[data-side=${side}] blockquote`)]),
    );
    for (const side of sides) places[side].textContent = waiting;
    turn.scrollIntoView({ block: "nearest" });
    for (const side of sides) await answer(side, question, places[side], running.signal);
    running = null;
    busy(false);
    message.focus({ preventScroll: true });
  });

  // Shows the answer of one side as it grows; an answer that failed is not part of the conversation.
  async function answer(side, question, place, signal) {
    const messages = [...conversations[side], { role: "user", content: question }];
    let text = "";
    let reason = lost; // why there is no answer
    try {
      signal.throwIfAborted();
      for await (const [kind, data] of events(messages, side === "tuned", signal)) {
        if (kind === "error") {
          reason = data.detail;
          break;
        }
        text = kind === "answer" ? data.answer : text + data.text;
        place.textContent = text;
        if (kind === "answer") reason = "";
      }
    } catch (error) {
      if (!signal.aborted) console.error(error); // the connection was lost
    }
    if (reason) {
      if (!signal.aborted) {
        place.textContent = `${failed} ${reason}`;
        return;
      }
      place.textContent = `${text} ${stopped}`.trim();
      if (!text) return;
    }
    conversations[side] = [...messages, { role: "assistant", content: text }];
  }

  async function* events(messages, tuned, signal) {
    const response = await fetch(form.dataset.answer, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ messages, tuned }),
      signal,
    });
    if (response.status === 401) location.reload();
    if (!response.ok) {
      // A refusal that is not in the reader's language is about the size of the conversation.
      const isSaid = response.status !== 413 && response.headers.get("content-type").startsWith("application/json");
      yield ["error", isSaid ? await response.json() : { detail: long }];
      return;
    }
    let rest = "";
    for await (const part of chunks(response.body.pipeThrough(new TextDecoderStream()))) {
      const blocks = (rest + part).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const [, kind, data] = /^event: (\w+)\ndata: (.*)$/.exec(block);
        yield [kind, JSON.parse(data)];
      }
    }
  }

  // Not every browser can iterate over a stream.
  async function* chunks(stream) {
    const reader = stream.getReader();
    for (let next = await reader.read(); !next.done; next = await reader.read()) yield next.value;
  }
}

startChat();
// It comes when there is an adapter.
document.addEventListener("htmx:after:swap", startChat);
