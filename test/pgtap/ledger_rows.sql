-- ledger_rows.sql: what is in the ledger after each kind of call, and that it stays there.
BEGIN;
SELECT plan(38);
SET LOCAL timezone = 'Europe/Berlin';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-03-31 23:59:59.123456+00';
-- The row of an answer, as a snapshot later than the call's sees it.
CREATE FUNCTION pg_temp.row_of(uuid) RETURNS SETOF kavach.audit_log LANGUAGE sql AS 'SELECT * FROM kavach.audit_log WHERE id = $1';

SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "mcp:**", "actions": ["run"]}]') AS a \gset
SELECT permission_id AS perm FROM kavach.permission \gset
SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_total": 100}') AS p \gset
SELECT code FROM kavach_authorize('agt_a', 'run', 'mcp:a:b', 60, '{"q": "ü"}', '10.1.2.3', 'r1', '{"m": [1]}', 5);
SELECT code FROM kavach_authorize('agt_a', 'run', 'mcp:a:c', 41, '{"q": 2}', '2001:db8::1', 'r2', '{"m": 2}');
SELECT code FROM kavach_authorize('agt_a', 'run', 'mcp:a:d');
SELECT code FROM kavach_authorize('agt_a', 'stop', 'mcp:a:e', 3, min_tokens => 2);
SELECT code FROM kavach_authorize('agt_ghost', 'run', 'mcp:a:f', 3, metadata => '{"who": "?"}');
SELECT code FROM kavach_record_usage('agt_a', 50, request_id => 'r1', metadata => '{"u": 1}');
SELECT code FROM kavach_record_usage('agt_a', 7, request_id => 'own');
SELECT kavach_adjust('agt_a', -2, 'credit');

SELECT results_eq(
  $$SELECT kind, agent_id, user_id, tenant_id, action, resource, arguments, ip, result, code, request_id, metadata
      FROM kavach.audit_log WHERE kind = 'authorize' ORDER BY resource$$,
  $$VALUES
    ('authorize', 'agt_a', 'ann', 'acme', 'run', 'mcp:a:b', '{"q": "ü"}'::jsonb, '10.1.2.3'::inet, 'allowed', 'allowed', 'r1', '{"m": [1]}'::jsonb),
    ('authorize', 'agt_a', 'ann', 'acme', 'run', 'mcp:a:c', '{"q": 2}', '2001:db8::1', 'denied', 'budget_exceeded', 'r2', '{"m": 2}'),
    ('authorize', 'agt_a', 'ann', 'acme', 'run', 'mcp:a:d', NULL, NULL, 'allowed', 'allowed', NULL, NULL),
    ('authorize', 'agt_a', 'ann', 'acme', 'stop', 'mcp:a:e', NULL, NULL, 'denied', 'permission_denied', NULL, NULL),
    ('authorize', 'agt_ghost', NULL, NULL, 'run', 'mcp:a:f', NULL, NULL, 'denied', 'agent_not_found', NULL, '{"who": "?"}')$$,
  'authorize rows: what was asked, by whom, and the outcome');
SELECT results_eq(
  $$SELECT resource, permission_id, policy_id, tokens_requested, min_tokens, tokens_released, tokens_cost, settles
      FROM kavach.audit_log WHERE kind = 'authorize' AND code <> 'budget_exceeded' ORDER BY resource$$,
  format($$VALUES
    ('mcp:a:b', %s::bigint, NULL::text, 60::bigint, 5::bigint, NULL::bigint, 60::bigint, NULL::uuid),
    ('mcp:a:d', %s, NULL, NULL, NULL, NULL, NULL, NULL),
    ('mcp:a:e', NULL, NULL, 3, 2, NULL, 0, NULL),
    ('mcp:a:f', NULL, NULL, 3, NULL, NULL, 0, NULL)$$, :'perm', :'perm'),
  'authorize rows: figures; 0 where refused, NULL where no cost was given');
SELECT results_eq(
  $$SELECT permission_id, policy_id, tokens_requested, min_tokens, tokens_released, tokens_cost FROM kavach.audit_log WHERE code = 'budget_exceeded'$$,
  format('VALUES (NULL::bigint, %L, 41::bigint, NULL::bigint, NULL::bigint, 0::bigint)', :'p'), 'the policy that refused; no permission has admitted');
SELECT results_eq(
  $$SELECT kind, agent_id, user_id, tenant_id, result, request_id, CASE kind WHEN 'usage' THEN tokens_requested END, tokens_cost, metadata,
           settles = (SELECT id FROM kavach.audit_log WHERE resource = 'mcp:a:b' AND kind = 'authorize'), min_tokens, action, resource
      FROM kavach.audit_log WHERE kind <> 'authorize' ORDER BY kind, tokens_cost$$,
  $$VALUES ('adjustment', 'agt_a', 'ann', 'acme', 'allowed', NULL, NULL::bigint, -2::bigint, NULL::jsonb, NULL::boolean, NULL::bigint, NULL, NULL),
           ('usage', 'agt_a', 'ann', 'acme', 'allowed', 'r1', 50, -10, '{"u": 1}', true, NULL, 'run', 'mcp:a:b'),
           ('usage', 'agt_a', 'ann', 'acme', 'allowed', 'own', 7, 7, NULL, NULL, NULL, NULL, NULL)$$,
  'usage and adjustment rows; a settling row has its authorization''s action and resource');
SELECT is(sum(tokens_cost), 50::numeric, 'so that a resource''s sum is what was spent on it') FROM kavach.audit_log WHERE resource = 'mcp:a:b';
SELECT is(tokens_released, 60::bigint, 'a settling row says what it releases') FROM kavach.audit_log WHERE request_id = 'r1' AND kind = 'usage';
SELECT is(count(*), 0::bigint, 'every row has a batch, which its transaction keeps open')
  FROM kavach.audit_log l WHERE NOT EXISTS (SELECT FROM kavach.batch_status s WHERE s.batch = l.batch AND s.pid = pg_backend_pid());
SELECT is(count(*), 0::bigint, 'every row has kind, result and code, and a refusal its reason')
  FROM kavach.audit_log WHERE kind IS NULL OR result IS NULL OR code IS NULL OR (result <> 'allowed' AND coalesce(reason, '') = '');
SELECT is(count(*), 8::bigint, 'a row each') FROM kavach.audit_log;

-- ids: UUIDv7 with the row's own millisecond, in the order of the calls.
SELECT is(count(*), 0::bigint, 'ts is the time of the call') FROM kavach.audit_log WHERE ts <> '2026-03-31 23:59:59.123456Z';
SELECT is(count(*), 0::bigint, 'version 7, RFC variant') FROM kavach.audit_log WHERE id::text !~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$';
SELECT is(count(*), 0::bigint, 'the first 48 bits are its milliseconds')
  FROM kavach.audit_log
 WHERE ('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint <> floor(extract(epoch FROM ts) * 1000)::bigint;
SET LOCAL kavach.clock = '2026-03-31 23:59:59.124000+00';
SELECT code FROM kavach_authorize('agt_a', 'run', 'mcp:z');
SELECT is(resource, 'mcp:z', 'a later row has a greater id') FROM kavach.audit_log ORDER BY id DESC LIMIT 1;
SELECT results_eq($$SELECT resource::int FROM (SELECT a.audit_id, resource FROM generate_series(1, 300) AS n, kavach_authorize('agt_ghost', 'run', n::text) a, pg_temp.row_of(a.audit_id) l) AS calls ORDER BY audit_id$$,
                  'SELECT generate_series(1, 300)', 'of one instant too, as a session made them');
SET LOCAL kavach.clock = '';
SELECT cmp_ok(ts, '>=', transaction_timestamp(), 'without kavach.clock it is the real time')
  FROM kavach_authorize('agt_a', 'run', 'mcp:now') a, pg_temp.row_of(a.audit_id) AS l;
SELECT cmp_ok(ts, '<=', clock_timestamp(), 'and not the future') FROM kavach.audit_log WHERE resource = 'mcp:now';

-- Partitions by UTC month, made where one is missing.
SELECT is(array_agg(DISTINCT tableoid::regclass::text), '{kavach.audit_log_2026_03}', 'a row of the month''s last instant is in its UTC month')
  FROM kavach.audit_log WHERE ts < '2026-04-01Z';
SET LOCAL kavach.clock = '2026-04-01 00:00:00+00';
SELECT code FROM kavach_authorize('agt_a', 'run', 'mcp:april');
SELECT is(tableoid::regclass::text, 'kavach.audit_log_2026_04', 'and the next instant in the next') FROM kavach.audit_log WHERE resource = 'mcp:april';
SET LOCAL kavach.clock = '2031-12-15 00:00:00+00';
SELECT code FROM kavach_authorize('agt_a', 'run', 'mcp:far');
SET LOCAL kavach.clock = '2019-01-15 00:00:00+00';
SELECT code FROM kavach_authorize('agt_a', 'run', 'mcp:past');
SELECT is(array_agg(tableoid::regclass::text ORDER BY ts), '{kavach.audit_log_2019_01,kavach.audit_log_2031_12}', 'years away too, both ways')
  FROM kavach.audit_log WHERE resource IN ('mcp:far', 'mcp:past');
SELECT results_eq($$SELECT count(*) FROM pg_index WHERE indrelid = 'kavach.audit_log'::regclass$$, ARRAY[0::bigint], 'the parent has no index');
SELECT results_eq(
  $$SELECT pg_get_indexdef(indexrelid) ~ '\((id|agent_id, ts|batch|settles|request_id, agent_id, kind)\)', indisunique, indisprimary, indpred IS NOT NULL
      FROM pg_index WHERE indrelid = 'kavach.audit_log_2026_03'::regclass ORDER BY 3 DESC, 2, 4$$,
  $$VALUES (true, true, true, false), (true, false, false, false), (true, false, false, false), (true, true, false, true), (true, true, false, true)$$,
  'a partition has its primary key, two plain and two partial unique indexes');
SELECT is(count(*), 0::bigint, 'partitions are no extension members')
  FROM pg_inherits JOIN pg_depend ON objid = inhrelid AND deptype = 'e' AND classid = 'pg_class'::regclass
 WHERE inhparent = 'kavach.audit_log'::regclass;

-- The columns, in their order.
SELECT is(string_agg(attname, ' ' ORDER BY attnum),
  'id ts batch kind agent_id user_id tenant_id action resource arguments ip result code reason permission_id policy_id tokens_requested min_tokens '
  'tokens_released tokens_cost settles request_id provider model tokens_input tokens_output tokens_cache_read tokens_cache_write cost metadata',
  'the ledger''s columns')
  FROM pg_attribute WHERE attrelid = 'kavach.audit_log'::regclass AND attnum > 0 AND NOT attisdropped;
SELECT is((SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'kavach.ledger'::regclass AND attnum > 0),
          (SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'kavach.audit_log'::regclass AND attnum > 0),
          'kavach.ledger has them all');

-- Nobody changes a row: not the owner, not a replica, not on a partition.
CREATE TEMP TABLE before AS SELECT * FROM kavach.audit_log;
SELECT throws_ok(statement, '42501', NULL, statement || ' as ' || role)
  FROM (VALUES ('UPDATE kavach.audit_log SET tokens_cost = 0'), ('DELETE FROM kavach.audit_log'), ('TRUNCATE kavach.audit_log'),
               ('UPDATE kavach.audit_log_2026_03 SET tokens_cost = 0'), ('DELETE FROM kavach.audit_log_2026_03'),
               ('TRUNCATE kavach.audit_log_2026_03')) AS s (statement),
       (VALUES ('origin'), ('replica')) AS r (role)
 WHERE set_config('session_replication_role', role, true) IS NOT NULL;
SELECT set_config('session_replication_role', 'origin', true);
SELECT throws_ok($$UPDATE kavach.audit_log SET ts = ts + interval '1 month' WHERE resource = 'mcp:april'$$, '42501', NULL, 'nor moves one to another month');
SELECT set_eq('SELECT * FROM kavach.audit_log', 'SELECT * FROM before', 'every row is as it was');

SELECT * FROM finish();
ROLLBACK;
