// The list of statements, and one by itself.

const statements = { texts: new Map(), list: null, found: null, search: "" };

const statementsTable = sortable($("statements-table"), {
  caption: "Statements",
  key: (statement) => statement.id,
  sort: [3, "down"],
  empty: "No statement has ended yet.",
  most: [20, 8],
  columns: [
    { label: "Statement", value: (one) => one.text ?? one.id, fill: (cell, one) => fillStatement(cell, one.id, one.text) },
    { label: "Busy, last minute", kind: "num", width: "8%", title: "Share of one server connection that it kept busy",
      value: (one) => one.concurrency, show: (one) => percent(one.concurrency) },
    { label: "Calls, last minute", kind: "num", width: "8%", value: (one) => one.calls_a_second, show: (one) => rate(one.calls_a_second) },
    { label: "Time in all", kind: "num", width: "12%", value: (one) => one.total_time,
      show: (one) => `${time(one.total_time)}, ${percent(one.total_time / Math.max(statements.list.total_time, 1e-9))}` },
    { label: "Calls", kind: "num", width: "6%", value: (one) => one.calls, show: (one) => count(one.calls) },
    { label: "Mean time", kind: "num", width: "7%", value: (one) => one.mean_time, show: (one) => time(one.mean_time) },
    { label: "p95", title: NEARLY_ALL, kind: "num", width: "7%", value: (one) => one.p95, show: (one) => time(one.p95) },
    { label: "Rows a call", kind: "num", width: "5%", value: (one) => one.rows / Math.max(one.calls, 1), show: rowsEach },
    { label: "Retries", kind: "num", width: "6%", title: "Times it was run again in place of an attempt that failed",
      value: (one) => one.retries, show: (one) => count(one.retries) },
    { label: "Errors", kind: "num", width: "5%", value: (one) => one.errors,
      fill: (cell, one) => {
        say(cell, count(one.errors));
        cell.className = one.errors > 0 ? "num bad" : "num";
      } },
  ],
});

function rowsEach(one) {
  const rows = one.rows / Math.max(one.calls, 1);
  return rows >= 10 || Number.isInteger(rows) ? count(rows) : rows.toFixed(1);
}

function showStatements(list) {
  statements.list = list;
  for (const one of list.listed) {
    if (one.text !== null) statements.texts.set(one.id, one.text.replace(/\s+/g, " "));
  }
  drawStatements();
  // Texts of what the list leaves out are asked for.
  if (statements.search !== "" && list.left_out > 0) findStatements();
}

function drawStatements() {
  const { list, search } = statements;
  if (!list) return;
  const wanted = search.toLowerCase();
  const source = statements.found ?? list;
  const rows = source.listed.filter((one) => (one.text ?? "").toLowerCase().includes(wanted) || one.id.includes(wanted));
  const most = source.left_out ? `the ${rows.length} with the most time; ${count(source.left_out)} more` : "";
  say($("statements-note"), search ? `${plural(rows.length + source.left_out, "statement")} of ${count(list.known)}` : most);
  statementsTable.show(rows, search ? "No statement contains that." : undefined);
}

/** Searches all statements where not all of them are here. */
async function findStatements() {
  const search = statements.search;
  const reply = await fetch(address(`/api/queries?${new URLSearchParams({ search })}`)).catch(() => null);
  if (!reply?.ok || statements.search !== search) return;
  statements.found = await reply.json();
  drawStatements();
}

let searching;
$("search").addEventListener("input", () => {
  statements.search = $("search").value.trim();
  statements.found = null;
  drawStatements();
  clearTimeout(searching);
  if (statements.search !== "" && statements.list?.left_out > 0) searching = setTimeout(findStatements, 250);
});

// One statement.

const opened = { id: null, timer: null, data: null };
const COLUMNS = { steps: 60, step: 15 };
const oneCursor = { chosen: null, charts: [] };
const heat = heatMap({ ...COLUMNS, title: "Calls by how long they took" });
const ONE_CHARTS = [
  lineChart({ ...COLUMNS, cursor: oneCursor, title: "Calls", format: rate, tick: rateTick, least: 1, series: [{ name: "calls", label: "ended", line: "c1" }] }),
  lineChart({ ...COLUMNS, cursor: oneCursor, title: "Time of a call, log scale", format: time, tick: timeTick, least: 0.001, log: true,
    series: [{ name: "p95", label: "p95", line: "c1", worst: true }, { name: "p50", label: "p50", line: "c2", worst: true }] }),
];

async function loadOne() {
  const id = opened.id;
  const reply = await fetch(address(`/api/query/${id}`)).catch(() => null);
  if (id !== opened.id || !reply) return;
  if (reply.status === 404) {
    say($("one-text"), "There is no record of this statement: it has not run since the start, or it has made room for others.");
    return;
  }
  if (reply.ok) showOne(await reply.json());
}

function showOne(data) {
  opened.data = data;
  say($("one-title"), `Statement ${data.id}`);
  say($("one-note"), `first seen ${moment(data.first_seen)}, last ${ago(data.last_seen, data.time)}`);
  say($("one-text"), data.text ?? "Texts are shown to holders of the admin token.");
  const share = statements.list ? percent(data.total.sum / Math.max(statements.list.total_time, 1e-9)) : null;
  showFacts($("one-facts"), [
    { name: "Calls", value: count(data.calls) },
    { name: "Time in all", value: time(data.total.sum), note: share ? `${share} of all` : "" },
    { name: "Mean time", value: time(data.total.mean) },
    { name: "p95", value: time(data.total.p95) },
    { name: "Rows a call", value: rowsEach(data) },
    { name: "Errors", value: count(data.errors), standing: data.errors ? "warn" : null },
  ]);
  showOneAdvice();
  showOneCharts(data);
  showTimes(data);
  showMore(data);
}

function showOneAdvice() {
  const advice = (live.now?.advice ?? []).filter((piece) => piece.subject.kind === "statement" && piece.subject.id === opened.id);
  showAdvice($("one-advice"), advice, false);
}

function showOneCharts(data) {
  const columns = data.columns ?? [];
  $("one-charts").hidden = columns.length === 0;
  heat.show(columns);
  const lists = {
    calls: columns.map((column) => column.calls / data.step),
    p50: columns.map((column) => column.p50),
    p95: columns.map((column) => column.p95),
  };
  for (const chart of ONE_CHARTS) chart.show(lists, columns.length - 1, data.time);
}

function showTimes(data) {
  const rows = [
    ["On the server", data.total, data.min, data.max],
    ["To the first row", data.first],
    ["In the queue before", data.queue],
  ];
  const heads = ["", "Least", "p50", "p95", "p99", "Most", "Mean"];
  const cells = ([label, times, min, max]) => make("tr", {}, make("th", { scope: "row" }, label),
    ...[min, times.p50, times.p95, times.p99, max, times.mean].map((value) => make("td", { class: "num" }, time(value))));
  $("one-times").replaceChildren(
    make("thead", {}, make("tr", {}, ...heads.map((head, index) => make(index ? "th" : "td", index ? { scope: "col", class: "num" } : {}, head)))),
    make("tbody", {}, ...rows.map(cells)),
  );
}

function showMore(data) {
  const names = (list) => (list.length ? list.join(", ") : "–");
  const rows = [
    ["Users", names(data.users)],
    ["Databases", names(data.databases)],
    ["Applications", names(data.applications)],
    ["Servers", names(data.nodes)],
    ["Rows", count(data.rows)],
    ["Bytes", `${bytes(data.received)} from clients, ${bytes(data.sent)} to them`],
    ["Errors", data.sqlstates.length ? data.sqlstates.map(([code, times]) => `${code} (${plural(times, "time")})`).join(", ") : "none"],
    ["Retries", count(data.retries)],
    ["Pins", plural(data.pins, "time")],
    ["Cache hits", count(data.cache_hits)],
  ];
  $("one-more").replaceChildren(...rows.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

/** Shows one statement, or the overview for none. */
function openOne(id) {
  clearInterval(opened.timer);
  Object.assign(opened, { id, data: null });
  $("overview").hidden = id !== null;
  $("one").hidden = id === null;
  if (id === null) return;
  say($("one-title"), `Statement ${id}`);
  say($("one-text"), statements.texts.get(id) ?? "Loading …");
  say($("one-note"), "");
  window.scrollTo(0, 0);
  $("one-title").focus({ preventScroll: true });
  loadOne();
  opened.timer = setInterval(loadOne, 5000);
}
