// A node-postgres application with its pool through a failover. Usage: node failover_node.js DSN
//
// Writes outside transactions, and in transactions that are run again when the error says that they may. Prints `running`
// once all have written, goes on until a line comes in, then until all have written more, and checks what is there.
// Sessions that rest meanwhile go on with their settings and prepared statements, on the connections that they had.
'use strict';

const assert = require('node:assert/strict');
const { Client, Pool } = require('pg');
const { version } = require('pg/package.json');

const WORKERS = 4;
const MORE = 20;
const pool = new Pool({ connectionString: process.argv[2], max: 2 * WORKERS });
// A client at rest hears of no end.
pool.on('error', fail);
let again = 0;
let ended = false;

// No error at all is to reach it.
async function outside(who, number) {
  await pool.query('INSERT INTO written VALUES ($1, $2)', [who, number]);
  const { rows } = await pool.query('SELECT max(n) AS n FROM written WHERE who = $1', [who]);
  assert.equal(rows[0].n, number);
}

async function inside(who, number) {
  for (;;) {
    const client = await pool.connect();
    client.on('error', () => {});
    let failure;
    try {
      await client.query('BEGIN');
      const { rows } = await client.query('SELECT count(*)::int AS n FROM written WHERE who = $1 AND n = $2', [who, number]);
      // An earlier attempt whose COMMIT was not answered.
      if (rows[0].n === 0) await client.query('INSERT INTO written VALUES ($1, $2)', [who, number]);
      await client.query('COMMIT');
      return;
    } catch (error) {
      const isLost = /Connection terminated|not queryable/.test(error.message);
      if (!isLost) assert.ok(['57P01', '08006', '08007'].includes(error.code), error);
      failure = error;
      again += 1;
    } finally {
      client.removeAllListeners('error');
      client.release(failure);
    }
  }
}

// A session with something of its own, that is then left alone.
async function rest(place) {
  const client = new Client({ connectionString: process.argv[2] });
  client.on('error', fail);
  await client.connect();
  await client.query(`SET work_mem = '${place + 1}MB'`);
  await resume(client, place, 0);
  return client;
}

async function resume(client, place, before) {
  const who = `resting ${place}`;
  const text = "SELECT count(*)::int AS n, current_setting('work_mem') AS memory FROM written WHERE who = $1";
  const { rows } = await client.query({ name: 'resume', text, values: [who] });
  assert.deepEqual(rows, [{ n: before, memory: `${place + 1}MB` }]);
  await client.query({ name: 'write', text: 'INSERT INTO written VALUES ($1, $2)', values: [who, before + 1] });
}

async function run(worker) {
  while (!ended) {
    await worker.step(worker.who, worker.done + 1);
    worker.done += 1;
  }
}

async function until(workers, count) {
  const goals = workers.map((worker) => worker.done + count);
  const deadline = Date.now() + 60_000;
  while (workers.some((worker, place) => worker.done < goals[place])) {
    assert.ok(Date.now() < deadline, JSON.stringify(workers.map((worker) => worker.done)));
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

async function main() {
  const workers = [];
  for (let place = 0; place < WORKERS; place += 1) {
    for (const step of [outside, inside]) workers.push({ step, who: `${step.name} ${place}`, done: 0 });
  }
  const running = Promise.all(workers.map(run));
  const resting = await Promise.all(Array.from({ length: WORKERS }, (_, place) => rest(place)));
  // One that fails ends the program at once.
  running.catch(fail);
  await until(workers, MORE);
  console.log('running');
  await new Promise((resolve) => process.stdin.once('data', resolve));
  await until(workers, MORE);
  ended = true;
  await running;
  await Promise.all(resting.map((client, place) => resume(client, place, 1)));
  for (const { who, done } of workers) {
    const text = 'SELECT count(*)::int AS all, count(DISTINCT n)::int AS each, max(n) AS last FROM written WHERE who = $1';
    const { rows } = await pool.query(text, [who]);
    assert.deepEqual(rows, [{ all: done, each: done, last: done }]);
  }
  const writes = workers.reduce((sum, worker) => sum + worker.done, 0);
  console.log(`node-postgres ${version}: ${writes} writes, 0 errors outside transactions, ${again} transactions run again, ${resting.length} sessions that rested went on`);
  await Promise.all(resting.map((client) => client.end()));
  await pool.end();
  process.stdin.destroy();
}

function fail(error) {
  console.error(error);
  process.exit(1);
}

main().catch(fail);
