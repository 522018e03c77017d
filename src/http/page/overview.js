// The overview: charts, advice, pools, servers, pins, locks, errors and slow statements.

const HALF = "Half of the statements took no longer";
const NEARLY_ALL = "95 of 100 statements took no longer";

const STEPS = 900;
const cursor = { chosen: null, charts: [] };
const inTime = { steps: STEPS, step: 1, cursor };

const CHARTS = [
  lineChart({ ...inTime, title: "Statements", format: rate, tick: rateTick, least: 1,
    series: [{ name: "statements", label: "ended", line: "c1" }] }),
  lineChart({ ...inTime, title: "Time of a statement, log scale", format: time, tick: timeTick, least: 0.001, log: true,
    series: [
      { name: "p99", label: "p99", line: "c3", worst: true },
      { name: "p95", label: "p95", line: "c1", worst: true },
      { name: "p50", label: "p50", line: "c2", worst: true },
    ] }),
  lineChart({ ...inTime, title: "Clients waiting, connections in use", tick: count, least: 4,
    series: [
      { name: "waiting", label: "waiting", line: "cbad", worst: true, format: (value) => plural(value ?? 0, "client") },
      { name: "in_use", label: "in use", line: "c2", worst: true, format: (value) => plural(value ?? 0, "connection") },
    ] }),
  lineChart({ ...inTime, title: "Errors", format: rate, tick: rateTick, least: 0.2,
    series: [{ name: "errors", label: "statements that failed", line: "cbad", pixels: 8 }] }),
];

const SERIES = ["statements", "transactions", "errors", "p50", "p95", "p99", "wait", "waiting", "in_use"];

/** The points that charts show: of the whole, or of one pool. */
const history = { lists: null, point: 0, time: 0, pool: "" };

function poolName({ database, user }) {
  return `${database}/${user}`;
}

async function loadHistory() {
  const option = $("chart-pool").selectedOptions[0];
  const pool = option?.value ?? "";
  const of = pool === "" ? "" : `?${new URLSearchParams({ database: option.dataset.database, user: option.dataset.user })}`;
  const reply = await fetch(address(`/api/history${of}`));
  if (!reply.ok) return;
  const data = await reply.json();
  history.lists = Object.fromEntries(SERIES.map((name) => [name, data[name]]));
  Object.assign(history, { point: data.point, time: data.time, pool });
  drawCharts();
}

/** Adds the newest point, or asks for all of them where some were missed. */
function addPoint(now) {
  const pool = $("chart-pool").value;
  const point = pool === "" ? now.whole : now.pools.find((one) => poolName(one) === pool)?.point;
  if (now.point === history.point && history.pool === pool) return;
  if (!history.lists || history.pool !== pool || now.point !== history.point + 1 || !point) {
    loadHistory().catch(() => {});
    return;
  }
  for (const name of SERIES) {
    const list = history.lists[name];
    list.push(point[name]);
    if (list.length > STEPS) list.shift();
  }
  Object.assign(history, { point: now.point, time: now.time });
  drawCharts();
}

function drawCharts() {
  for (const chart of CHARTS) chart.show(history.lists, history.point, history.time);
  if ($("chart-table").closest("details").open) drawValues();
}

/** The charts as numbers: a row for each minute, latest first. */
function drawValues() {
  const mean = (values) => (values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null);
  const most = (values) => (values.length ? Math.max(...values) : null);
  const columns = [
    ["Statements", (of) => rate(mean(of("statements")))],
    ["p50", (of) => time(mean(of("p50")))],
    ["p95", (of) => time(mean(of("p95")))],
    ["p99", (of) => time(mean(of("p99")))],
    ["Most waiting", (of) => plural(most(of("waiting")) ?? 0, "client")],
    ["Errors", (of) => rate(mean(of("errors")))],
  ];
  const rows = [];
  for (let minute = 0; minute * 60 < (history.lists?.statements.length ?? 0); minute += 1) {
    const of = (name) => {
      const list = history.lists[name];
      const end = list.length - minute * 60;
      return list.slice(Math.max(0, end - 60), end).filter((value) => value !== null);
    };
    const cells = columns.map(([, show]) => make("td", { class: "num" }, show(of)));
    rows.push(make("tr", {}, make("th", { scope: "row" }, clock(history.time - minute * 60000)), ...cells));
  }
  const heads = columns.map(([label]) => make("th", { scope: "col", class: "num" }, label));
  $("chart-table").replaceChildren(
    make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Minute up to"), ...heads)),
    make("tbody", {}, ...rows),
  );
}

/** One piece of advice, as an item of a list. */
function fillAdvice(item, advice, withSubject) {
  const words = { now: "Now", soon: "Soon", hint: "Worth a look" };
  const subject = withSubject ? subjectOf(advice.subject) : null;
  const action = make("p", { class: "action" }, advice.action);
  if (advice.setting) action.append(" Setting: ", make("code", {}, advice.setting));
  item.className = advice.urgency;
  item.replaceChildren(
    make("p", {}, make("span", { class: "urgency" }, words[advice.urgency]), " · ", subject, subject ? ": " : null, advice.what),
    action,
  );
}

function subjectOf(subject) {
  if (subject.kind === "pool") return make("a", { href: "#pools" }, `pool ${poolName(subject)}`);
  if (subject.kind === "server") return make("a", { href: "#servers" }, `server ${subject.name}`);
  if (subject.kind === "process") return "pgweir";
  return make("a", { href: statementLink(subject.id), class: "code" }, shortText(subject.id));
}

/** The beginning of a statement's text, as far as it is known. */
function shortText(id) {
  const text = statements.texts.get(id) ?? `statement ${id}`;
  return text.length > 60 ? `${text.slice(0, 59)}…` : text;
}

function adviceKey(advice) {
  return JSON.stringify([advice.subject, advice.setting, advice.action]);
}

function showAdvice(list, advice, withSubject) {
  keep(list, advice, adviceKey, () => make("li"), (item, one) => {
    const shown = JSON.stringify([one, withSubject && one.subject.kind === "statement" ? shortText(one.subject.id) : ""]);
    // Nothing is made anew under somebody's finger or focus.
    if (item.shown === shown || item.contains(document.activeElement)) return;
    item.shown = shown;
    fillAdvice(item, one, withSubject);
  });
}

function fillServersBar(cell, pool) {
  if (!cell.firstChild) {
    const bar = make("span", { class: "bar", "aria-hidden": "true" }, make("span", { class: "used" }), make("span", { class: "idle" }));
    cell.append(bar, make("span"));
  }
  const [bar, text] = cell.children;
  const part = (number) => `${(100 * number) / Math.max(pool.servers_max, pool.servers_active, 1)}%`;
  bar.children[0].style.width = part(pool.servers_active);
  bar.children[1].style.width = part(pool.servers_idle + pool.servers_other);
  say(text, `${pool.servers_active} of ${pool.servers_max}`);
  mark(cell, "title", `${pool.servers_active} in use, ${pool.servers_idle} idle, ${pool.servers_other} being opened, tested or cancelled`);
}

const poolsTable = sortable($("pools-table"), {
  caption: "Pools",
  key: poolName,
  sort: [0, "up"],
  empty: "No pool yet: one is made when the first client of a user and a database logs in.",
  most: [20, 8],
  columns: [
    { label: "Database and user", value: poolName, show: (pool) => `${poolName(pool)}${pool.paused ? " (paused)" : ""}` },
    { label: "Clients", kind: "num", width: "7%", value: (pool) => pool.clients, show: (pool) => count(pool.clients) },
    { label: "Waiting", kind: "num", width: "8%", value: (pool) => pool.waiting,
      fill: (cell, pool) => {
        say(cell, count(pool.waiting));
        cell.className = pool.waiting > 0 ? "num bad" : "num";
        mark(cell, "title", pool.why_waiting);
      } },
    { label: "Longest wait", kind: "num", width: "9%", value: (pool) => pool.longest_wait,
      show: (pool) => (pool.waiting ? time(pool.longest_wait) : "–") },
    { label: "Connections in use", kind: "num whole", width: "16%", value: (pool) => pool.servers_active, fill: fillServersBar },
    { label: "Statements", kind: "num", width: "9%", value: (pool) => pool.statements_a_second, show: (pool) => rate(pool.statements_a_second) },
    { label: "p50", title: HALF, kind: "num", width: "9%", value: (pool) => pool.point?.p50, show: (pool) => time(pool.point?.p50) },
    { label: "p95", title: NEARLY_ALL, kind: "num", width: "9%", value: (pool) => pool.point?.p95, show: (pool) => time(pool.point?.p95) },
    { label: "Errors", kind: "num", width: "8%", value: (pool) => pool.errors_a_second, show: (pool) => rate(pool.errors_a_second) },
    { label: "Mode", width: "8%", value: (pool) => pool.mode, show: (pool) => pool.mode },
  ],
});

const serversTable = sortable($("servers-table"), {
  caption: "Servers",
  key: (server) => `${server.cluster} ${server.name}`,
  sort: [1, "up"],
  empty: "Servers are listed where pgweir looks after several: give it replicas (cluster.replicas).",
  columns: [
    { label: "Server", value: (server) => server.name, show: (server) => server.name },
    { label: "Role", width: "12%", value: (server) => server.role, show: (server) => server.role },
    { label: "State", width: "20%", value: (server) => server.state,
      fill: (cell, server) => {
        say(cell, `${server.state} for ${roughTime(server.in_state)}`);
        cell.className = server.state === "up" ? "" : server.state === "down" || server.state === "fenced" ? "bad" : "warn";
        mark(cell, "title", server.error);
      } },
    { label: "Lag", kind: "num", width: "16%", value: (server) => server.lag,
      show: (server) => (server.lag === null ? "–" : `${time(server.lag)}, ${bytes(server.lag_bytes ?? 0)}`) },
    { label: "Connections", kind: "num", width: "14%", value: (server) => server.connections, show: (server) => count(server.connections) },
    { label: "Reads", kind: "num", width: "10%", value: (server) => server.reads, show: (server) => count(server.reads) },
  ],
});

const pinsTable = sortable($("pins-table"), {
  caption: "Pinned sessions",
  key: (pin) => pin.pid,
  sort: [1, "down"],
  empty: "No session keeps its server connection.",
  most: [10, 4],
  columns: [
    { label: "Who", value: (pin) => pin.application || pin.user,
      fill: (cell, pin) => {
        say(cell, `${pin.application ? `${pin.application}, ` : ""}${pin.user} on ${pin.database}`);
        mark(cell, "title", `process id ${pin.pid}${pin.address ? `, from ${pin.address}` : ""}`);
      } },
    { label: "For", kind: "num", width: "16%", value: (pin) => pin.age, show: (pin) => longTime(pin.age) },
    { label: "Why", width: "22%", value: (pin) => pin.reasons[0].reason,
      fill: (cell, pin) => {
        say(cell, pin.reasons.map((one) => one.reason.replaceAll("_", " ")).join(", "));
        mark(cell, "title", pin.reasons.map((one) => one.remedy).join(" "));
      } },
    { label: "Through", kind: "whole", width: "32%", value: (pin) => pin.text ?? pin.id, fill: (cell, pin) => fillStatement(cell, pin.id, pin.text) },
  ],
});

const locksTable = sortable($("locks-table"), {
  caption: "Lock waits",
  key: (wait) => wait.client.pid,
  sort: [1, "down"],
  empty: "Nothing waits for a lock.",
  most: [10, 4],
  columns: [
    { label: "Statement that waits", value: (wait) => wait.text ?? wait.id, fill: (cell, wait) => fillStatement(cell, wait.id, wait.text) },
    { label: "For", kind: "num", width: "9%", value: (wait) => wait.running, show: (wait) => time(wait.running) },
    { label: "Who", width: "18%", value: (wait) => wait.client.application, show: (wait) => `${wait.client.application || wait.client.user} on ${wait.client.database}` },
    { label: "Lock", width: "18%", value: (wait) => wait.relation, show: (wait) => `${wait.mode}${wait.relation ? ` on ${wait.relation}` : ""}` },
    { label: "Held by", kind: "whole", width: "26%", value: (wait) => wait.blockers[0]?.backend, show: (wait) => wait.blockers.map(blockerName).join(", ") },
  ],
});

function blockerName(blocker) {
  const who = blocker.client ? ` (${blocker.client.application || blocker.client.user})` : "";
  return `server process ${blocker.backend}${who}, ${blocker.state || "state unknown"}`;
}

function incidentKey(incident) {
  return `${incident.time} ${incident.client.pid} ${incident.id}`;
}

const errorsTable = sortable($("errors-table"), {
  caption: "Latest errors",
  key: incidentKey,
  sort: [1, "down"],
  empty: "No statement has failed since the start.",
  most: [10, 4],
  columns: [
    { label: "Statement", value: (error) => error.text ?? error.id, fill: (cell, error) => fillStatement(cell, error.id, error.text) },
    { label: "When", kind: "num", width: "19%", value: (error) => error.time, fill: fillWhen },
    { label: "Error", width: "33%", value: (error) => error.sqlstate,
      fill: (cell, error) => {
        say(cell, `${error.sqlstate} ${(error.condition ?? "").replaceAll("_", " ")}`);
        mark(cell, "title", error.remedy);
      } },
    { label: "Who", width: "17%", value: (error) => error.client.application, show: whose },
  ],
});

const slowTable = sortable($("slow-table"), {
  caption: "Latest slow statements",
  key: incidentKey,
  sort: [1, "down"],
  empty: "None yet.",
  most: [10, 4],
  columns: [
    { label: "Statement", value: (slow) => slow.text ?? slow.id, fill: (cell, slow) => fillStatement(cell, slow.id, slow.text) },
    { label: "When", kind: "num", width: "17%", value: (slow) => slow.time, fill: fillWhen },
    { label: "Took", kind: "num", width: "14%", value: (slow) => slow.total, show: (slow) => time(slow.total) },
    { label: "In the queue", kind: "num", width: "15%", value: (slow) => slow.queued, show: (slow) => time(slow.queued) },
    { label: "Who", width: "17%", value: (slow) => slow.client.application, show: whose },
  ],
});

function fillWhen(cell, incident) {
  say(cell, ago(incident.time, live.now?.time ?? incident.time));
  mark(cell, "title", moment(incident.time));
}

function whose(incident) {
  return incident.client.application || incident.client.user;
}

function showPoolChoice(pools) {
  const options = [{ name: "", label: "all pools" }, ...pools.filter((pool) => pool.point)
    .map((pool) => ({ name: poolName(pool), label: poolName(pool), pool }))];
  const select = $("chart-pool");
  const before = select.value;
  const known = [...select.options].map((option) => option.value).join("\n");
  const wanted = options.sort((a, b) => a.name.localeCompare(b.name));
  if (known === wanted.map((option) => option.name).join("\n")) return;
  select.replaceChildren(...wanted.map(({ name, label, pool }) => {
    const option = make("option", { value: name }, label);
    if (pool) Object.assign(option.dataset, { database: pool.database, user: pool.user });
    return option;
  }));
  select.value = wanted.some((option) => option.name === before) ? before : "";
}

function showNow(now) {
  const whole = now.whole ?? {};
  const waiting = now.pools.reduce((sum, pool) => sum + pool.waiting, 0);
  const full = now.clients.connected >= 0.9 * now.clients.connected_max;
  showFacts($("facts"), [
    { name: "Clients", value: count(now.clients.connected), note: `of ${count(now.clients.connected_max)}`, standing: full ? "bad" : null },
    { name: "Waiting", value: plural(waiting, "client"), standing: waiting ? "warn" : null },
    { name: "Connections in use", value: count(whole.in_use ?? 0), note: `of ${count(now.pools.reduce((sum, pool) => sum + pool.servers_active + pool.servers_idle + pool.servers_other, 0))} open` },
    { name: "Statements", value: rate(whole.statements ?? 0), note: `${rate(whole.transactions ?? 0)} transactions` },
    { name: "Statement time, p95", value: time(whole.p95), note: `p50 ${time(whole.p50)}` },
    { name: "Errors", value: rate(whole.errors ?? 0), standing: whole.errors ? "warn" : null },
    { name: "Up for", value: longTime(now.uptime) },
  ]);
  say($("version"), now.version);
  showPoolChoice(now.pools);
  addPoint(now);
  showAdvice($("advice-list"), now.advice, true);
  say($("advice-note"), now.advice.length ? `${plural(now.advice.length, "thing")}, the most urgent first` : "");
  $("advice-empty").hidden = now.advice.length > 0;
  say($("advice-empty"), "Nothing needs attention.");
  say($("pools-note"), now.pools_left_out ? `the ${now.pools.length} busiest; ${count(now.pools_left_out)} more` : "");
  poolsTable.show(now.pools);
  say($("servers-note"), now.held === null ? "" : `no server takes writes; statements wait since ${longTime(now.held)}`);
  serversTable.show(now.nodes);
  say($("pins-note"), now.pins_left_out ? `the ${now.pins.length} longest; ${count(now.pins_left_out)} more` : "");
  pinsTable.show(now.pins);
  locksTable.show(now.waits);
  errorsTable.show(now.errors);
  const threshold = now.slow_threshold;
  say($("slow-note"), threshold === null ? "" : `${time(threshold)} and more`);
  slowTable.show(now.slow, threshold === null
    ? "Not watched: slow_log.threshold is 0."
    : `No statement has taken ${time(threshold)} since the start.`);
}
