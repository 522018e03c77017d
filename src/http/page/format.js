// Numbers as people read them, each with its unit, from which it is not torn.

/** Between a number and its unit. */
const GAP = "\u00a0";

const grouped = new Intl.NumberFormat("en");

function count(number) {
  if (number < 1e6) return grouped.format(Math.round(number));
  if (number < 1e9) return `${(number / 1e6).toFixed(2)}${GAP}M`;
  return `${(number / 1e9).toFixed(2)}${GAP}G`;
}

/** Three digits at least, none of them for nothing. */
function digits(number) {
  if (number >= 100) return number.toFixed(0);
  if (number >= 10) return number.toFixed(1);
  return number.toFixed(2);
}

/** Seconds. */
function time(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds === 0) return `0${GAP}s`;
  if (seconds < 0.9995e-3) return `${(seconds * 1e6).toFixed(0)}${GAP}µs`;
  if (seconds < 0.9995) return `${digits(seconds * 1e3)}${GAP}ms`;
  if (seconds < 59.95) return `${digits(seconds)}${GAP}s`;
  return longTime(seconds);
}

/** A round number of seconds, on an axis. */
function timeTick(seconds) {
  return time(seconds).replace(/\.0+(?=\s)/, "");
}

/** Whole seconds, minutes, hours or days: the two largest that say something. */
function longTime(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => whole >= size);
  if (first < 0) return `0${GAP}s`;
  const [[name, size], next] = [units[first], units[first + 1]];
  const head = `${Math.floor(whole / size)}${GAP}${name}`;
  const rest = next ? Math.floor((whole % size) / next[1]) : 0;
  return rest > 0 ? `${head}${GAP}${rest}${GAP}${next[0]}` : head;
}

/** The largest unit alone: how old something in a list is. */
function roughTime(seconds) {
  return longTime(seconds).split(GAP).slice(0, 2).join(GAP);
}

/** A number a second. */
function rate(number) {
  if (number === null || number === undefined) return "–";
  if (number === 0) return "0/s";
  if (number < 0.0995) return `${number.toFixed(3)}/s`;
  if (number < 0.995) return `${number.toFixed(2)}/s`;
  if (number < 99.95) return `${number.toFixed(1)}/s`;
  return `${count(number)}/s`;
}

/** A round number a second, on an axis. */
function rateTick(number) {
  return `${number < 10 ? Number(number.toPrecision(2)) : count(number)}/s`;
}

function percent(share) {
  if (share === 0) return `0${GAP}%`;
  if (share < 0.001) return `<${GAP}0.1${GAP}%`;
  return `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)}${GAP}%`;
}

function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = number;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : digits(value)}${GAP}${units[unit]}`;
}

function plural(number, word) {
  return `${count(number)}${GAP}${word}${number === 1 ? "" : "s"}`;
}

function clock(milliseconds) {
  return new Date(milliseconds).toLocaleTimeString("en-GB");
}

function moment(milliseconds) {
  const at = new Date(milliseconds);
  const day = at.toLocaleDateString("en-CA");
  return `${day} ${clock(milliseconds)}`;
}

function ago(milliseconds, now) {
  return `${roughTime(Math.max(1, (now - milliseconds) / 1000))} ago`;
}
