// Puts the parts together.

for (const chart of CHARTS) $("chart-grid").append(chart.figure);
$("one-charts").append(heat.figure, ...ONE_CHARTS.map((chart) => chart.figure));
$("chart-pool").addEventListener("change", () => loadHistory().catch(() => {}));
$("chart-table").closest("details").addEventListener("toggle", drawValues);

function route() {
  const found = /^#\/statement\/([0-9a-f]{16})$/.exec(location.hash);
  const wasOpen = opened.id !== null;
  openOne(found ? found[1] : null);
  if (wasOpen && !found) {
    const target = document.getElementById(location.hash.slice(1));
    (target ?? $("main")).scrollIntoView();
  }
}

window.addEventListener("hashchange", route);
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  $("main").focus();
});
loadHistory().catch(() => {});
connect();
route();
