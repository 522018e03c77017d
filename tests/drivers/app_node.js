// An application that uses all of a session at once, by node-postgres. Arguments: DSN, clients, rounds.

const assert = require("node:assert/strict");
const { Client } = require("pg");

async function use(dsn, number, rounds) {
  const client = new Client({ connectionString: dsn });
  const channel = `node_${number}`;
  const heard = [];
  let tell = () => {};
  client.on("notification", (notification) => {
    heard.push(notification.payload);
    tell();
  });
  await client.connect();
  await client.query(`SET work_mem = '${4000 + number}kB'`);
  await client.query("SELECT set_config('app.client', $1, false)", [channel]);
  await client.query(`LISTEN ${channel}`);
  for (let round = 0; round < rounds; round += 1) {
    await oneRound(client, number, channel);
    const told = new Promise((resolve) => (tell = resolve));
    await client.query("SELECT pg_notify($1, $2)", [channel, String(round)]);
    if (heard.length === round) await told;
    assert.deepEqual(heard.slice(round), [String(round)]);
  }
  await client.end();
}

async function oneRound(client, number, channel) {
  const value = async (text, values) => Object.values((await client.query(text, values)).rows[0])[0];
  const range = (from, count) => Array.from({ length: count }, (_, index) => from + index);
  assert.equal(await value("SHOW work_mem"), `${4000 + number}kB`);
  assert.equal(await value("SELECT current_setting('app.client')"), channel);
  for (const factor of [0, 1, 2]) {
    const doubled = { name: "double", text: "SELECT $1::int * 2 AS n", values: [factor] };
    assert.equal((await client.query(doubled)).rows[0].n, factor * 2);
  }
  await client.query("PREPARE twice (int) AS SELECT $1 * 2");
  assert.equal(await value("EXECUTE twice(21)"), 42);
  await client.query("DEALLOCATE twice");
  await client.query("CREATE TEMP TABLE mine (a int)");
  await client.query("INSERT INTO mine SELECT generate_series($1::int, $2::int)", [number, number + 99]);
  const sum = range(number, 100).reduce((a, b) => a + b, 0);
  assert.equal(Number(await value("SELECT sum(a) FROM mine")), sum);
  await client.query("DROP TABLE mine");
  await client.query("BEGIN");
  await client.query(`DECLARE rows CURSOR FOR SELECT generate_series(${number}, ${number + 49}) AS n`);
  const seen = [];
  for (;;) {
    const { rows } = await client.query("FETCH 10 FROM rows");
    if (rows.length === 0) break;
    seen.push(...rows.map((row) => row.n));
  }
  await client.query("COMMIT");
  assert.deepEqual(seen, range(number, 50));
  const key = number % 5;
  await client.query("SELECT pg_advisory_lock($1)", [key]);
  const before = Number(await value("SELECT value FROM counters WHERE key = $1", [key]));
  await client.query("UPDATE counters SET value = $1 WHERE key = $2", [before + 1, key]);
  assert.equal(await value("SELECT pg_advisory_unlock($1)", [key]), true);
}

async function main() {
  const [dsn, clients, rounds] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
  await Promise.all(Array.from({ length: clients }, (_, number) => use(dsn, number, rounds)));
  console.log(`node-postgres: ${clients} clients, ${rounds} rounds each`);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
