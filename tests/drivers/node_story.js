// The common story in node-postgres. NODE_PATH names the folder that pg and pg-copy-streams are in.
'use strict';

const assert = require('node:assert');
const fs = require('node:fs');
const { Readable } = require('node:stream');
const { pipeline } = require('node:stream/promises');
const { Client } = require('pg');
const { from, to } = require('pg-copy-streams');

// Host, port, user, password and database come from the environment, as pg reads them.
const ssl = { ca: fs.readFileSync(process.env.PGSSLROOTCERT), rejectUnauthorized: true };
const AT = new Date('2026-11-23T12:30:15.123Z');

async function connect(options = {}) {
  const client = new Client({ ssl, ...options });
  await client.connect();
  return client;
}

function step(number, text) {
  console.log(`node ${number}: ${text}`);
}

async function fails(promise, code) {
  await assert.rejects(promise, (error) => {
    assert.strictEqual(error.code, code, error.message);
    return true;
  });
}

async function transaction(client) {
  const count = async () => Number((await client.query('select count(*) from story_items')).rows[0].count);
  await client.query('begin');
  await client.query("insert into story_items (id, name) values (100, 'gone')");
  assert.strictEqual(await count(), 9);
  await client.query('savepoint inner_one');
  await fails(client.query("insert into story_items (id, name) values (100, 'twice')"), '23505');
  await fails(client.query('select 1'), '25P02');
  await client.query('rollback to savepoint inner_one');
  assert.strictEqual(await count(), 9);
  await client.query('rollback');
  assert.strictEqual(await count(), 8);
}

async function copies(client) {
  const lines = Array.from({ length: 2000 }, (_, at) => `${1000 + at}\tcopied ${1000 + at}\n`);
  await pipeline(Readable.from(lines), client.query(from('copy story_items (id, name) from stdin')));
  let out = '';
  const stream = client.query(to('copy (select id, name from story_items where id >= 1000 order by id) to stdout'));
  for await (const piece of stream) out += piece.toString();
  assert.strictEqual(out, lines.join(''));
}

async function cancel(client) {
  const { Query } = require('pg');
  const began = Date.now();
  const query = new Query('select pg_sleep(30)');
  const ended = new Promise((resolve) => query.on('error', resolve).on('end', () => resolve(null)));
  client.query(query);
  await new Promise((resolve) => setTimeout(resolve, 500));
  // node-postgres sends a cancel request on a connection of its own, without TLS as libpq did before version 17.
  new Client({ ssl: false }).cancel(client, query);
  const error = await ended;
  assert.strictEqual(error && error.code, '57014');
  assert.ok(Date.now() - began < 15000);
  assert.strictEqual((await client.query('select 2 as two')).rows[0].two, 2);
}

async function pipelined() {
  const client = await connect({ pipeline: true });
  const numbers = Array.from({ length: 50 }, (_, at) => at);
  const results = await Promise.all(numbers.map((number) => client.query('select $1::int * 2 as doubled', [number])));
  assert.deepStrictEqual(results.map((result) => result.rows[0].doubled), numbers.map((number) => number * 2));
  const [good, bad, after] = await Promise.allSettled([
    client.query('select 1 as one'),
    client.query('select 1 / $1::int', [0]),
    client.query('select 3 as three'),
  ]);
  assert.strictEqual(good.value.rows[0].one, 1);
  assert.strictEqual(bad.reason.code, '22012');
  assert.strictEqual(after.value.rows[0].three, 3);
  await client.end();
}

async function spread(client) {
  const text = 'select region, count(*), sum(amount) from story_events group by region order by region';
  const rows = async (binary) => (await client.query({ text, rowMode: 'array', binary })).rows.map((row) => row.map(Number));
  for (const binary of [false, true, false, true]) {
    assert.deepStrictEqual(await rows(binary), [[0, 10, 2200], [1, 10, 1900], [2, 10, 2000], [3, 10, 2100]]);
  }
  await client.query('insert into story_events (customer_id, region, amount) values ($1, $2, $3)', [41, 1, 5]);
  assert.deepStrictEqual(await rows(false), [[0, 10, 2200], [1, 11, 1905], [2, 10, 2000], [3, 10, 2100]]);
  const one = await client.query('select amount from story_events where customer_id = $1', [41]);
  assert.strictEqual(one.rows[0].amount, 5);
}

async function main() {
  const client = await connect();
  assert.ok(client.connection.stream.encrypted);
  assert.strictEqual((await client.query('select 1 as one')).rows[0].one, 1);
  step(1, 'login by SCRAM over TLS');

  const insert = { name: 'insert', text: 'insert into story_items (id, name, price, at, data) values ($1, $2, $3, $4, $5)' };
  for (let item = 1; item <= 8; item++) {
    const data = item === 3 ? null : Buffer.from([0, item, 255]);
    await client.query({ ...insert, values: [item, `item ${item} é`, String(item / 4), AT, data] });
  }
  for (let turn = 0; turn < 3; turn++) {
    for (let item = 1; item <= 8; item++) {
      const found = await client.query({ name: 'by-id', text: 'select name from story_items where id = $1', values: [item] });
      assert.strictEqual(found.rows[0].name, `item ${item} é`);
    }
  }
  step(2, 'prepared statements');

  const rows = (await client.query({ text: 'select id, name, at, data from story_items order by id', binary: true })).rows;
  assert.strictEqual(rows.length, 8);
  assert.deepStrictEqual([rows[0].id, rows[0].name, rows[2].data], [1, 'item 1 é', null]);
  assert.deepStrictEqual(rows[0].data, Buffer.from([0, 1, 255]));
  assert.strictEqual(rows[0].at.getTime(), AT.getTime());
  step(3, 'binary results');

  await transaction(client);
  step(4, 'a transaction rolled back, with a savepoint');
  await copies(client);
  step(5, 'COPY in and out');
  await cancel(client);
  step(6, 'cancel');

  for (let turn = 0; turn < 3; turn++) {
    await fails(client.query({ name: 'divide', text: 'select 10 / $1::int as ratio', values: [0] }), '22012');
    const ratio = await client.query({ name: 'divide', text: 'select 10 / $1::int as ratio', values: [5] });
    assert.strictEqual(ratio.rows[0].ratio, 2);
  }
  step(7, 'an error, and reuse after it');
  await pipelined();
  step(8, 'a pipeline, with an error in it');
  await spread(client);
  step(9, 'aggregates over spread rows, fresh after a write');

  await client.query("set timezone to 'Asia/Tokyo'");
  for (let turn = 0; turn < 3; turn++) {
    const text = await client.query('select at::text from story_items where id = 1');
    assert.strictEqual(text.rows[0].at, '2026-11-23 21:30:15.123+09');
  }
  const other = await connect();
  const text = await other.query('select at::text from story_items where id = 1');
  assert.notStrictEqual(text.rows[0].at, '2026-11-23 21:30:15.123+09');
  await other.end();
  await client.end();
  step(10, 'a setting that stays with the session');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
