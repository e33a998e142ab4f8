// node.js: kavach through node-postgres, in the ways that applications use it. node.pl runs it.
//
// Prints "ok NAME" or "not ok NAME" for each check. The environment says where the server is.
'use strict';
const assert = require('assert');
const { Client, Pool } = require('pg');

function check(got, wanted, name) {
  try {
    assert.deepStrictEqual(got, wanted);
    console.log(`ok ${name}`);
  } catch {
    console.log(`not ok ${name}: got ${JSON.stringify(got)}, wanted ${JSON.stringify(wanted)}`);
  }
}

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const AUTHORIZE = "SELECT * FROM kavach_authorize($1, 'run', $2, tokens_cost => $3)";

async function connect() {
  const client = new Client();
  client.on('error', () => {});
  await client.connect();
  return client;
}

async function main() {
  const db = await connect();
  const row = async (text, values) => (await db.query(text, values)).rows[0];
  const authorize = (cost, agent = 'agt_js', client = db) =>
    client.query(AUTHORIZE, [agent, 'x', cost]).then((result) => result.rows[0]);
  const spent = async () =>
    Number((await row("SELECT coalesce(sum(tokens_cost), 0) AS n FROM kavach.ledger WHERE agent_id = 'agt_js'")).n);
  const fails = async (state, name, promise) =>
    check(await promise.then(() => null, (error) => error.code), state, name);

  // ---- types, there and back ----

  const agent = await row(
    "SELECT kavach_create_agent('agt_js', user_id => $1, tenant_id => $2, permissions => $3, metadata => $4, expires_at => $5) AS id",
    ['ann', null, JSON.stringify([{ resource: '*', actions: ['*'] }]), { team: 'β', n: [1, null] }, new Date('2100-01-01T00:00:00Z')]);
  check(agent.id, 'agt_js', 'text');
  const kept = await row("SELECT tenant_id, metadata, expires_at FROM kavach.agent WHERE agent_id = 'agt_js'");
  check(kept, { tenant_id: null, metadata: { team: 'β', n: [1, null] }, expires_at: new Date('2100-01-01T00:00:00Z') },
    'NULL as null, jsonb as an object, timestamptz as a Date');
  const policy = (await row("SELECT kavach_create_policy(agent_id => 'agt_js', limits => $1) AS id",
    [{ max_tokens_cost_per_day: 1e15, max_calls_total: 100000 }])).id;

  const call = await authorize(10);
  check([call.allowed, call.code, call.reason, call.retry_at], [true, 'allowed', null, null], 'boolean, text and NULLs of an answer');
  check([call.tokens_granted, call.tokens_remaining], ['10', '999999999999990'], 'int8 as a string');
  check(UUID.test(call.audit_id), true, 'uuid as a string');
  const used = await row("SELECT * FROM kavach_record_usage('agt_js', $1, audit_id => $2, metadata => $3)", [4, call.audit_id, { ok: true }]);
  check([used.tokens_charged, used.code], ['-6', 'recorded'], 'a settlement');
  const json = (await row("SELECT to_jsonb(kavach_authorize('agt_js', 'run', 'x', tokens_cost => $1)) AS call", [5])).call;
  check([json.allowed, json.tokens_granted, json.reason], [true, 5, null], 'to_jsonb makes numbers of them');
  const full = await row('SELECT * FROM kavach_authorize($1, $2, $3, $4, $5, $6, $7, $8, $9)',
    ['agt_js', 'send', 'smtp:out', '5', { to: 'x@example.com' }, '10.1.2.3', 'request-1', {}, 1]);
  check(full.allowed, true, 'every argument');
  check(await row('SELECT arguments, ip FROM kavach.ledger WHERE id = $1', [full.audit_id]),
    { arguments: { to: 'x@example.com' }, ip: '10.1.2.3' }, 'as it was sent');
  const nothing = await authorize(null);
  check([nothing.allowed, nothing.tokens_granted], [true, null], 'null as no cost');
  check((await authorize(undefined)).tokens_granted, null, 'undefined too');
  const refused = await authorize('1000000000000000');
  check([refused.allowed, refused.code, refused.tokens_granted, refused.policy_id], [false, 'budget_exceeded', '0', policy],
    'a refusal is an answer');
  check(refused.retry_at, new Date('2026-03-11T00:00:00Z'), 'with a Date to retry at');

  // ---- errors ----

  const count = async () => (await row('SELECT count(*) FROM kavach.ledger')).count;
  const before = await count();
  await fails('22004', 'no agent', authorize(1, null));
  await fails('22023', 'an empty agent', authorize(1, ''));
  await fails('22023', 'a negative cost', authorize(-1));
  await fails('22P02', 'a fraction as the cost', authorize(1.5));
  await fails('22003', 'a number that is no int8', authorize('9223372036854775808'));
  await fails('22P02', 'no uuid', row("SELECT kavach_record_usage('agt_js', 1, audit_id => $1)", ['x']));
  await fails('KV002', 'an unknown authorization', row("SELECT kavach_record_usage('agt_js', 1, audit_id => $1)", ['00000000-0000-7000-8000-000000000000']));
  await fails('22P02', 'an array as arguments, which node-postgres takes for one of SQL', row("SELECT kavach_authorize('agt_js', 'run', 'x', arguments => $1)", [[1]]));
  await fails('22023', 'an array in JSON', row("SELECT kavach_authorize('agt_js', 'run', 'x', arguments => $1)", ['[1]']));
  await fails('42704', 'usage of an unknown agent', row("SELECT kavach_record_usage('agt_nobody', 1)"));
  await fails('42704', 'a policy for an unknown agent', row("SELECT kavach_create_policy(agent_id => 'agt_nobody', limits => '{\"max_calls_total\": 1}')"));
  await fails('23505', 'an agent_id that is taken', row("SELECT kavach_create_agent('agt_js', 'ann')"));
  await fails('42501', 'a change of the ledger', row('UPDATE kavach.audit_log SET tokens_cost = 0'));
  check(await count(), before, 'errors write nothing');
  check((await authorize(1)).allowed, true, 'and the connection goes on');

  // ---- prepared statements, which a name makes ----

  let start = await spent();
  const named = (cost) => db.query({ name: 'authorize', text: AUTHORIZE, values: ['agt_js', 'x', cost] }).then((r) => r.rows[0].code);
  for (let i = 0; i < 10; i++) check(await named(1), 'allowed', `a named statement, time ${i + 1}`);
  check(await spent() - start, 10, 'ten times is ten calls');
  check((await row("SELECT count(*) FROM pg_prepared_statements WHERE name = 'authorize'")).count, '1', 'of a statement that is prepared');
  await db.query("SELECT kavach_revoke_agent('agt_js', 'test')");
  check(await named(1), 'agent_revoked', 'it obeys a revocation');
  await db.query("SELECT kavach_restore_agent('agt_js')");

  // ---- transactions, and several at once ----

  start = await spent();
  await db.query('BEGIN');
  await authorize(1);
  await db.query('ROLLBACK');
  await db.query('BEGIN');
  await authorize(2);
  await db.query('SAVEPOINT a');
  await authorize(100);
  await fails('22012', 'an error in a transaction', db.query('SELECT 1 / 0'));
  await db.query('ROLLBACK TO a');
  await authorize(4);
  await db.query('COMMIT');
  check(await spent() - start, 6, 'a transaction charges what it commits');
  const two = await db.query("SELECT code FROM kavach_authorize('agt_js', 'run', 'x', 1); SELECT code FROM kavach_record_usage('agt_js', 2)");
  check(two.map((result) => result.rows[0].code), ['allowed', 'recorded'], 'two verbs in one query');
  await fails('22012', 'two verbs and an error in one query',
    db.query("SELECT kavach_authorize('agt_js', 'run', 'x', 10); SELECT kavach_record_usage('agt_js', 20); SELECT 1 / 0"));
  check(await spent() - start, 9, 'are all rolled back');
  check((await Promise.all(Array.from({ length: 20 }, () => authorize(1)))).map((answer) => answer.code),
    Array(20).fill('allowed'), 'twenty at once on one connection wait for each other');

  const pool = new Pool({ max: 5 });
  await db.query("SELECT kavach_create_agent('agt_pool', 'ann', permissions => '[{\"resource\": \"*\", \"actions\": [\"*\"]}]')");
  await db.query("SELECT kavach_create_policy(agent_id => 'agt_pool', limits => '{\"max_calls_total\": 7}')");
  const codes = await Promise.all(Array.from({ length: 40 }, () => authorize(1, 'agt_pool', pool).then((answer) => answer.code)));
  check(codes.filter((code) => code === 'allowed').length, 7, 'a Pool of five, forty calls for seven');
  await pool.end();

  // ---- reports, and what is larger than one answer ----

  const report = (await db.query('SELECT * FROM kavach_cost_by_agent($1, $2)', [new Date('2026-03-10T00:00:00Z'), null])).rows;
  check(report.find((line) => line.agent_id === 'agt_js').tokens_cost, String(await spent()), 'a report, numeric as a string');
  const total = Number(await count());
  await db.query('BEGIN');
  await db.query('DECLARE export CURSOR FOR SELECT id, tokens_cost FROM kavach_export(NULL, NULL)');
  const ids = new Set();
  for (let rows; (rows = (await db.query('FETCH 10 FROM export')).rows).length;) rows.forEach((line) => ids.add(line.id));
  await db.query('COMMIT');
  check(ids.size, total, 'a cursor has every row of an export');
  let Cursor = null;
  try { Cursor = require('pg-cursor'); } catch { /* a package of its own */ }
  if (Cursor) {
    const cursor = db.query(new Cursor('SELECT id FROM kavach_export($1, $2)', [null, null]));
    let read = 0;
    for (let rows; (rows = await cursor.read(10)).length;) read += rows.length;
    check(read, total, 'pg-cursor too');
  }

  // ---- the end of a connection ----

  start = await spent();
  const lost = await connect();
  const { pid } = (await lost.query('SELECT pg_backend_pid() AS pid')).rows[0];
  await lost.query('BEGIN');
  check((await authorize(1000, 'agt_js', lost)).allowed, true, 'a call in an open transaction');
  lost.connection.stream.destroy();
  while ((await db.query('SELECT FROM pg_stat_activity WHERE pid = $1', [pid])).rowCount > 0);
  check(await spent() - start, 0, 'a socket that is destroyed in a transaction: not charged');
  const ending = await connect();
  await ending.query('BEGIN');
  await authorize(1000, 'agt_js', ending);
  await ending.end();
  check(await spent() - start, 0, 'nor with end()');
  await db.end();
  console.log('end');
}

main();
