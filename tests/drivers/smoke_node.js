// What an application does with node-postgres, checked. Usage: node smoke_node.js DSN
'use strict';

const assert = require('node:assert/strict');
const { Client, Pool } = require('pg');
const { version } = require('pg/package.json');

const CONNECTIONS = 20;
const dsn = process.argv[2];

async function connect() {
  const client = new Client({ connectionString: dsn });
  await client.connect();
  return client;
}

async function transactions(client) {
  await client.query('BEGIN');
  await client.query('INSERT INTO wallets VALUES ($1, $2), ($3, $4)', [1, 100, 2, 0]);
  await client.query('COMMIT');
  await client.query('BEGIN');
  await client.query('UPDATE wallets SET amount = amount - 50 WHERE id = $1', [1]);
  await client.query('ROLLBACK');
  const { rows } = await client.query('SELECT id, amount FROM wallets ORDER BY id');
  assert.deepEqual(rows, [{ id: 1, amount: 100 }, { id: 2, amount: 0 }]);
}

async function preparedStatements(client) {
  for (let value = 0; value < 10; value += 1) {
    const { rows } = await client.query({ name: 'next', text: 'SELECT $1::int + 1 AS next', values: [value] });
    assert.deepEqual(rows, [{ next: value + 1 }]);
  }
}

async function severalStatements(client) {
  const results = await client.query('SELECT 1 AS one; SELECT 2 AS two');
  assert.deepEqual(results.map((result) => result.rows), [[{ one: 1 }], [{ two: 2 }]]);
}

async function cursor(client) {
  await client.query('BEGIN');
  await client.query('DECLARE walk CURSOR FOR SELECT n FROM generate_series(1, 1000) AS n');
  let total = 0;
  for (;;) {
    const { rows } = await client.query('FETCH 100 FROM walk');
    if (rows.length === 0) break;
    total += rows.reduce((sum, row) => sum + row.n, 0);
  }
  await client.query('COMMIT');
  assert.equal(total, 500500);
}

async function failures(client) {
  await assert.rejects(client.query('SELECT 1/0'), { code: '22012' });
  await assert.rejects(client.query('INSERT INTO wallets VALUES ($1, $2)', [1, 1]), {
    code: '23505',
    constraint: 'wallets_pkey',
  });
  await assert.rejects(client.query('SELECT nothing'), { code: '42703' });
  const { rows } = await client.query('SELECT 1 AS one');
  assert.deepEqual(rows, [{ one: 1 }]);
}

async function cancel(client, observer) {
  const sleeper = assert.rejects(client.query('SELECT pg_sleep(63)'), { code: '57014' });
  const asleep = "SELECT pid FROM pg_stat_activity WHERE query LIKE '%sleep(63)%' AND wait_event = 'PgSleep'";
  while ((await observer.query(asleep)).rows.length === 0) {
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  // The driver keeps the key but has no public call for it, so the request is sent by hand.
  const request = Buffer.alloc(16);
  [16, 80877102, client.processID, client.secretKey].forEach((word, i) => request.writeInt32BE(word, i * 4));
  const { hostname, port } = new URL(dsn);
  const socket = require('node:net').connect(Number(port), hostname, () => socket.end(request));
  await sleeper;
  const { rows } = await client.query('SELECT 2 AS two');
  assert.deepEqual(rows, [{ two: 2 }]);
}

async function notifications(client) {
  const listener = await connect();
  const heard = new Promise((resolve) => listener.once('notification', resolve));
  await listener.query('LISTEN news_node');
  await client.query("SELECT pg_notify('news_node', 'hello')");
  const { channel, payload } = await heard;
  assert.deepEqual([channel, payload], ['news_node', 'hello']);
  await listener.end();
}

async function manyConnections() {
  const pool = new Pool({ connectionString: dsn, max: CONNECTIONS });
  const work = Array.from({ length: CONNECTIONS * 20 }, async (_, number) => {
    const { rows } = await pool.query('SELECT $1::text AS token', [`token ${number}`]);
    assert.equal(rows[0].token, `token ${number}`);
  });
  await Promise.all(work);
  await pool.end();
}

async function main() {
  const client = await connect();
  const observer = await connect();
  await client.query('CREATE TABLE wallets (id int PRIMARY KEY, amount int NOT NULL)');
  await transactions(client);
  await preparedStatements(client);
  await severalStatements(client);
  await cursor(client);
  await failures(client);
  await cancel(client, observer);
  await notifications(client);
  await manyConnections();
  await client.end();
  await observer.end();
  console.log(`node-postgres ${version}: all passed, ${CONNECTIONS} connections at once`);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
