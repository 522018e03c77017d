// Tables that sort by any column, by mouse and keyboard alike, and become lists on a phone.

const PHONE = matchMedia("(max-width: 44rem)");

/**
 * A table in `place`. `columns`: `{label, value(row), show(row), fill(cell, row), kind, width}`; `value` is what is
 * sorted by, and one of `show` and `fill` says what is seen. The first column is the row's head. `kind` is "num" or a
 * class. `sort`: index and direction to begin with. No more than `most` rows, and
 * fewer on a phone, are shown until all are asked for.
 */
function sortable(place, { caption, columns, key, sort, empty, most = [Infinity, Infinity] }) {
  const limit = most[PHONE.matches ? 1 : 0];
  const state = { column: sort[0], down: sort[1] === "down", rows: [], all: false };
  const body = make("tbody");
  const heads = columns.map((column, index) => {
    const arrow = make("span", { class: "arrow", "aria-hidden": "true" });
    const label = make("span", {}, column.label);
    // On the side where it does not move what is read downwards.
    const parts = isNumber(column) ? [arrow, label] : [label, arrow];
    const button = make("button", { type: "button", title: column.title }, ...parts);
    button.addEventListener("click", () => sortBy(index));
    return make("th", { scope: "col", role: "columnheader", class: column.kind }, button);
  });
  const colgroup = make("colgroup", {}, ...columns.map((column) => {
    const col = make("col");
    if (column.width) col.style.width = column.width;
    return col;
  }));
  // Rows that are laid out as a grid are still rows to whoever listens.
  const table = make("table", { class: "fixed cards", role: "table", "aria-label": caption },
    colgroup, make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...heads)), body);
  body.setAttribute("role", "rowgroup");
  const nothing = make("p", { class: "empty" }, "Loading …");
  const choice = make("select", {}, ...columns.map((column, index) => make("option", { value: index }, column.label)));
  const turn = make("button", { type: "button" });
  const bar = make("p", { class: "sort" }, make("label", {}, "Sort by", choice), turn);
  choice.addEventListener("change", () => sortBy(Number(choice.value), isNumber(columns[choice.value])));
  turn.addEventListener("click", () => sortBy(state.column, !state.down));
  const more = make("button", { type: "button", class: "more" });
  more.addEventListener("click", () => {
    state.all = !state.all;
    draw(false);
  });
  place.append(bar, table, nothing, more);

  function sortBy(index, down) {
    state.down = down ?? (state.column === index ? !state.down : isNumber(columns[index]));
    state.column = index;
    draw(true);
  }

  function ordered() {
    const value = columns[state.column].value;
    const way = state.down ? -1 : 1;
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b) : a - b);
    return state.rows
      .map((row, index) => [row, index])
      .sort(([a, i], [b, j]) => way * compare(value(a) ?? -1, value(b) ?? -1) || i - j)
      .map(([row]) => row);
  }

  /** While somebody points at a row or is in one, rows stay where they are. */
  function held(rows) {
    const busy = body.matches(":hover") || body.contains(document.activeElement);
    if (!busy || !body.kept) return rows;
    const places = new Map([...body.children].map((element, index) => [element.rowKey, index]));
    const at = (row) => places.get(key(row)) ?? Infinity;
    return rows.map((row, index) => [row, index]).sort(([a, i], [b, j]) => at(a) - at(b) || i - j).map(([row]) => row);
  }

  function draw(asked) {
    heads.forEach((head, index) => {
      const sorted = index === state.column;
      mark(head, "aria-sort", sorted ? (state.down ? "descending" : "ascending") : null);
      say(head.querySelector(".arrow"), sorted ? (state.down ? "↓" : "↑") : "");
    });
    choice.value = state.column;
    say(turn, state.down ? "↓ descending" : "↑ ascending");
    const rows = asked ? ordered() : held(ordered());
    keep(body, state.all ? rows : rows.slice(0, limit), key, create, update);
    more.hidden = rows.length <= limit;
    say(more, state.all ? `Show ${limit} only` : `Show all ${rows.length}`);
    table.hidden = rows.length === 0;
    bar.hidden = rows.length === 0;
    nothing.hidden = rows.length > 0;
  }

  function create(row) {
    const cells = columns.map((column, index) => {
      const name = index === 0 ? "th" : "td";
      return make(name, {
        role: index === 0 ? "rowheader" : "cell",
        scope: index === 0 ? "row" : undefined,
        class: column.kind,
        "data-label": column.label,
      });
    });
    const element = make("tr", { role: "row" }, ...cells);
    element.rowKey = key(row);
    return element;
  }

  function update(element, row) {
    columns.forEach((column, index) => {
      const cell = element.children[index];
      if (column.fill) column.fill(cell, row);
      else say(cell, column.show(row));
    });
  }

  return {
    /** Shows these rows; `why` is what to say when there are none. */
    show(rows, why) {
      state.rows = rows;
      say(nothing, why ?? empty);
      draw(false);
    },
  };
}

function isNumber(column) {
  return column.kind?.startsWith("num") ?? false;
}

/** A cell that holds a link to a statement, in one line. */
function fillStatement(cell, id, text) {
  if (!cell.firstChild) cell.append(make("a", { class: "line-1 code" }));
  const link = cell.firstChild;
  const shown = text ?? `statement ${id}`;
  say(link, shown.replace(/\s+/g, " "));
  mark(link, "href", statementLink(id));
  mark(link, "title", shown);
}
