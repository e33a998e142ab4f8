-- drop_agent.sql: what names an agent goes with it, however it goes; the next one of its id inherits nothing.
BEGIN;
SELECT plan(45);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';

SELECT kavach_create_policy(each => 'agent', limits => '{"max_tokens_cost_per_day": 100}') AS each,
       kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_per_day": 1000}') AS ann \gset
CREATE FUNCTION pg_temp.make(agent text, owner text) RETURNS text LANGUAGE sql AS $$
  SELECT kavach_create_agent(agent, owner, permissions => '[{"resource": "mail", "actions": ["send"]}]');
  SELECT kavach_create_policy(agent_id => agent, limits => '{"max_calls_total": 5, "max_tokens_cost_per_month": 50}', action => 'warn');
$$;
-- What names the agent, but for the ledger.
CREATE FUNCTION pg_temp.left_of(gone text) RETURNS bigint LANGUAGE sql AS $$
  SELECT (SELECT count(*) FROM kavach.agent WHERE agent_id = gone) + (SELECT count(*) FROM kavach.permission WHERE agent_id = gone)
       + (SELECT count(*) FROM kavach.budget_policy WHERE scope = 'agent' AND subject = gone)
       + (SELECT count(*) FROM kavach.budget_baseline WHERE subject = gone)
       + (SELECT count(*) FROM kavach.budget_limit l WHERE NOT EXISTS (SELECT FROM kavach.budget_policy p WHERE p.policy_id = l.policy_id))
       + (SELECT count(*) FROM kavach.budget_baseline b WHERE NOT EXISTS (SELECT FROM kavach.budget_policy p WHERE p.policy_id = b.policy_id))
$$;

CREATE FUNCTION pg_temp.drop_by(how text, statement text) RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
  other text;
BEGIN
  PERFORM pg_temp.make('agt_a', 'ann');
  PERFORM kavach_create_agent('agt_b', 'bob', permissions => '[{"resource": "*", "actions": ["*"]}]');
  other := kavach_create_policy(agent_id => 'agt_b', limits => '{"max_calls_total": 7}');
  PERFORM kavach_authorize('agt_a', 'send', 'mail', tokens_cost => 30);
  PERFORM kavach_reset_policy((SELECT policy_id FROM kavach.budget_policy WHERE each), 'agt_a');
  PERFORM kavach_reset_policy(policy_id) FROM kavach.budget_policy WHERE subject = 'agt_a';
  RETURN NEXT cmp_ok(pg_temp.left_of('agt_a'), '>=', 6::bigint, how || ': there is something to go');
  PERFORM set_config('session_replication_role', CASE how WHEN 'as a replica' THEN 'replica' ELSE 'origin' END, true);
  EXECUTE statement;
  PERFORM set_config('session_replication_role', 'origin', true);
  RETURN NEXT is(pg_temp.left_of('agt_a'), 0::bigint, 'and it goes');
  RETURN NEXT is(pg_temp.left_of('agt_b'), CASE how WHEN 'by TRUNCATE' THEN 0::bigint ELSE 3::bigint END, 'others stay');
  RETURN NEXT is(code, 'agent_not_found', 'later calls are refused') FROM kavach_authorize('agt_a', 'send', 'mail');
  PERFORM kavach_create_agent('agt_a', 'eve');
  RETURN NEXT is(code, 'permission_denied', 'the next of that id may do nothing') FROM kavach_authorize('agt_a', 'send', 'mail', tokens_cost => 30);
  PERFORM kavach_grant_permission('agt_a', 'mail', '{send}');
  RETURN NEXT is(row(allowed, code, tokens_remaining)::text, row(false, 'budget_exceeded', greatest(100 - 30 * n, 0))::text,
                 'has no budget of its own, and nothing is forgiven: what the ledger holds of the id counts')
    FROM kavach_authorize('agt_a', 'send', 'mail', tokens_cost => 90), (SELECT count(*) AS n FROM kavach.audit_log WHERE agent_id = 'agt_a' AND tokens_cost = 30) AS l;
  PERFORM kavach_drop_agent(agent_id) FROM unnest('{agt_a,agt_b,agt_z}'::text[]) AS agent_id;
END $$;
SELECT pg_temp.drop_by('by its function', $$SELECT kavach_drop_agent('agt_a')$$);
SELECT pg_temp.drop_by('by DELETE', $$DELETE FROM kavach.agent WHERE agent_id = 'agt_a'$$);
SELECT pg_temp.drop_by('by another id', $$UPDATE kavach.agent SET agent_id = 'agt_z' WHERE agent_id = 'agt_a'$$);
SELECT pg_temp.drop_by('by TRUNCATE', 'TRUNCATE kavach.agent');
SELECT pg_temp.drop_by('as a replica', $$DELETE FROM kavach.agent WHERE agent_id = 'agt_a'$$);

SELECT is(kavach_drop_agent('agt_nobody'), false, 'an agent that is not there: false');
SELECT throws_ok($$SELECT kavach_drop_agent(NULL)$$, '22004', NULL, 'NULL: an error');
SELECT is(count(*), 1::bigint, 'policies of users stay') FROM kavach.budget_policy WHERE policy_id = :'ann';
SELECT is(count(*) > 0, true, 'the ledger has what was called') FROM kavach.audit_log WHERE agent_id = 'agt_a' AND user_id = 'ann';
-- what an earlier version has left of an agent that is gone
INSERT INTO kavach.permission (agent_id, resource, actions) VALUES ('agt_old', '*', '{*}');
SELECT kavach_create_agent('agt_old', 'eve');
SELECT is(code, 'permission_denied', 'a permission without an agent comes back to life with none') FROM kavach_authorize('agt_old', 'send', 'mail');

-- What a dropped agent has open is settled for whom it was authorized, also where its id is another's by then.
SELECT kavach_create_agent('agt_open', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT count(*) FROM generate_series(1, 3) n, kavach_authorize('agt_open', 'run', 'x', tokens_cost => 30, request_id => 'open' || n);
SELECT is(kavach_drop_agent('agt_open'), true, 'an agent with open calls is dropped');
SELECT is(count(*), 3::bigint, 'which stay open') FROM kavach.unsettled WHERE agent_id = 'agt_open';
SELECT is(code, 'recorded', 'one is settled') FROM kavach_record_usage('agt_open', 20, request_id => 'open1');
SELECT kavach_create_agent('agt_open', 'eve');
SELECT is(code, 'recorded', 'another when the id is taken again') FROM kavach_record_usage('agt_open', 20, request_id => 'open2');
SELECT is(u.code, 'recorded', 'and one released') FROM kavach.unsettled o, kavach_record_usage('agt_open', 0, audit_id => o.id) u WHERE o.agent_id = 'agt_open';
SELECT is(count(*), 0::bigint, 'so that none is open') FROM kavach.unsettled WHERE agent_id = 'agt_open';
SELECT is(array_agg(DISTINCT row(user_id, tenant_id)::text), '{"(ann,acme)"}', 'for the first owner') FROM kavach.audit_log WHERE agent_id = 'agt_open';

-- Whatever the tables hold, an agent is made, set and dropped by index, with plans of when they were empty, too.
CREATE FUNCTION pg_temp.scans() RETURNS bigint LANGUAGE sql AS $$
  SELECT sum(seq_scan)::bigint FROM pg_stat_xact_user_tables
   WHERE schemaname = 'kavach' AND relname IN ('permission', 'budget_policy', 'budget_limit', 'budget_baseline')
$$;
SELECT pg_temp.scans() AS before \gset
SELECT count(kavach_create_agent('agt_i' || n, 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]', replace => true)) FROM generate_series(1, 9) n, generate_series(1, 2);
SELECT is(count(*) FILTER (WHERE kavach_drop_agent('agt_i' || n)), 9::bigint, 'agents are made, set and dropped') FROM generate_series(1, 9) n;
SELECT is(pg_temp.scans(), :before::bigint, 'without reading all of what others may do');

SELECT is(has_function_privilege('public', 'kavach_drop_agent(text)', 'EXECUTE'), false, 'not for everybody');

SELECT * FROM finish();
ROLLBACK;
