// The document: finding, making and changing what is in it, and nothing that is as it should be already.

const $ = (id) => document.getElementById(id);

/** An element with attributes and what is in it: texts and elements. */
function make(name, attributes = {}, ...content) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined) element.setAttribute(key, value);
  }
  element.append(...content.filter((part) => part !== undefined && part !== null));
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function mark(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/**
 * Lets `parent` hold one element for each of `items`, in their order. Elements are found again by `key`, so that what
 * has the focus keeps it.
 */
function keep(parent, items, key, create, update) {
  const known = (parent.kept ??= new Map());
  const wanted = new Set(items.map(key));
  for (const [name, element] of known) {
    if (!wanted.has(name)) {
      element.remove();
      known.delete(name);
    }
  }
  items.forEach((item, place) => {
    const name = key(item);
    let element = known.get(name);
    if (!element) {
      element = create(item);
      known.set(name, element);
    }
    update(element, item);
    if (parent.children[place] !== element) parent.insertBefore(element, parent.children[place] ?? null);
  });
}

/** Fills a list of facts: rows of name, value, note, and how it stands. */
function showFacts(list, facts) {
  keep(list, facts, (fact) => fact.name, (fact) => {
    const div = make("div", {}, make("dt", {}, fact.name), make("dd", {}, make("span"), " ", make("small")));
    return div;
  }, (div, fact) => {
    const [value, note] = div.lastChild.children;
    say(value, fact.value);
    say(note, fact.note ?? "");
    mark(div, "class", fact.standing ?? null);
  });
}

/** Where data is asked for: without the user and password that the page's own address may hold. */
function address(path) {
  return `${location.origin}${path}`;
}

function statementLink(id) {
  return `#/statement/${id}`;
}
