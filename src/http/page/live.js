// The stream of events, and saying so when it stops.

const live = { now: null, at: 0, source: null, failed: null };

/** Nothing for this long means that nobody is there. */
const SILENCE = 4000;
const RETRY = 3000;

const STATES = {
  serving: "serving",
  starting: "starting: no clients are let in yet",
  paused: "paused: RESUME in the console lets clients go on",
  stopping: "stopping: transactions are finished, no clients are let in",
};

function connect() {
  live.source?.close();
  const source = new EventSource(address("/events"));
  live.source = source;
  source.addEventListener("now", (event) => {
    live.now = JSON.parse(event.data);
    live.at = Date.now();
    live.failed = null;
    showState();
    showNow(live.now);
    if (opened.id !== null) showOneAdvice();
  });
  source.addEventListener("queries", (event) => showStatements(JSON.parse(event.data)));
  source.addEventListener("error", () => {
    // The browser tries again by itself unless it was turned away.
    if (source.readyState === EventSource.CLOSED) {
      explain();
      setTimeout(connect, RETRY);
    }
  });
}

/** Why events are refused. */
async function explain() {
  const reply = await fetch(address("/api/now")).catch(() => null);
  if (reply === null) live.failed = null;
  else if (reply.status === 401 || reply.status === 403) live.failed = "pgweir wants a token now: load the page again.";
  else if (reply.ok) live.failed = "Too many pages are open: close one.";
}

function showState() {
  const lost = live.at !== 0 && Date.now() - live.at > SILENCE;
  const state = lost ? "lost" : live.now?.state ?? "connecting";
  mark(document.body, "data-state", state);
  say($("state-text"), lost ? "no connection" : STATES[state] ?? "connecting …");
  const word = lost ? "lost" : rate(live.now?.whole?.statements ?? 0);
  document.title = live.now ? `${word} · pgweir` : "pgweir";
  $("lost").hidden = !lost && live.failed === null;
  const since = `No connection to pgweir since ${clock(live.at)}. What is shown is of then; trying again.`;
  say($("lost"), live.failed ?? (lost ? since : ""));
}

setInterval(showState, 1000);
