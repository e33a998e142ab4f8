-- roles.sql: access is granted to the role itself, and taken back without touching what is another's.
BEGIN;
SELECT plan(70);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';
CREATE ROLE kv_group;
CREATE ROLE kv_member IN ROLE kv_group;
CREATE ROLE kv_super SUPERUSER;
CREATE ROLE kv_two;
CREATE FUNCTION pg_temp.may(role text, OUT asks bool, OUT reads bool, OUT changes bool) LANGUAGE sql AS $$
  SELECT has_function_privilege(role, 'kavach_check_budget(text, bigint, text, text, jsonb, inet, bigint)', 'EXECUTE'),
         has_table_privilege(role, 'kavach.ledger', 'SELECT') AND has_schema_privilege(role, 'kavach', 'USAGE') AND has_function_privilege(role, 'kavach_billing_report(int, int)', 'EXECUTE'),
         has_function_privilege(role, 'kavach_drop_agent(text)', 'EXECUTE')
$$;

-- "Has it" is not "was granted it".
SELECT is(kavach_grant_role('kv_group', 'reader'), true, 'a group is a reader');
SELECT is(may::text, '(f,t,f)', 'so its member reads') FROM pg_temp.may('kv_member');
SELECT is(kavach_grant_role('kv_member', 'reader'), true, 'the member is granted it all the same');
SELECT is(kavach_grant_role('kv_member', 'reader'), false, 'once');
REVOKE kv_group FROM kv_member;
SELECT is(may::text, '(f,t,f)', 'and keeps it without the group') FROM pg_temp.may('kv_member');
SELECT is(kavach_grant_role('kv_super', 'app'), true, 'so is a superuser');
ALTER ROLE kv_super NOSUPERUSER;
SELECT is(may::text, '(t,f,f)', 'who keeps it when he is none') FROM pg_temp.may('kv_super');

-- What is taken back.
SELECT is(kavach_revoke_role('kv_member', 'reader'), true, 'reader is taken back');
SELECT is(may::text, '(f,f,f)', 'from it alone') FROM pg_temp.may('kv_member');
SELECT is(may::text, '(f,t,f)', 'and not from the group') FROM pg_temp.may('kv_group');
SELECT is(kavach_revoke_role('kv_member', 'reader'), false, 'once');
SELECT kavach_grant_role('kv_two', 'app'), kavach_grant_role('kv_two', 'reader');
SELECT is(may::text, '(t,t,f)', 'of two kinds') FROM pg_temp.may('kv_two');
SELECT is(kavach_revoke_role('kv_two', 'app'), true, 'one is taken back');
SELECT is(may::text, '(f,t,f)', 'and the other stays') FROM pg_temp.may('kv_two');
SELECT is(bool_and(held), true, 'wholly') FROM kavach.privileges('kv_two', 'reader');
SELECT kavach_grant_role('kv_two', 'app');
SELECT is(kavach_revoke_role('kv_two', 'reader'), true, 'the other way round');
SELECT is(bool_and(held), true, 'as well') FROM kavach.privileges('kv_two', 'app');
SELECT is(may::text, '(t,f,f)', 'and no more') FROM pg_temp.may('kv_two');
SELECT is(kavach_grant_role('kv_two', 'admin'), true, 'admin');
SELECT is(may::text, '(t,t,t)', 'includes both') FROM pg_temp.may('kv_two');
SELECT throws_ok($$SELECT kavach_revoke_role('kv_two', 'reader')$$, '22023', NULL, 'so that none is taken out of it');
SELECT throws_ok($$SELECT kavach_revoke_role('kv_two', 'root')$$, '22023', 'unrecognized access "root"', 'an unknown access is that');
SELECT is(kavach_revoke_role('kv_two', 'admin'), true, 'it goes');
SELECT is(may::text, '(f,f,f)', 'with all of it') FROM pg_temp.may('kv_two');
SELECT is(string_agg(x::text, ', '), NULL, 'nothing is left in any ACL')
  FROM (SELECT unnest(proacl) FROM pg_proc UNION ALL SELECT unnest(relacl) FROM pg_class UNION ALL SELECT unnest(nspacl) FROM pg_namespace) AS a (x) WHERE x::text LIKE 'kv_two=%';
-- What is not kavach's to take.
CREATE ROLE kv_public;
CREATE TABLE public.own (i int);
REVOKE USAGE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO kv_public;
GRANT SELECT ON public.own TO kv_public;
SELECT is(kavach_grant_role('kv_public', 'app') AND kavach_revoke_role('kv_public', 'app'), true, 'of a role with tables of its own beside kavach');
SELECT is(has_schema_privilege('kv_public', 'public', 'USAGE'), true, 'the schema stays');
SELECT is(kavach_revoke_role('kv_public', 'app'), false, 'and nothing else');
REVOKE SELECT ON public.own FROM kv_public;
SELECT is(kavach_revoke_role('kv_public', 'app'), true, 'without them it goes');
SELECT lives_ok('DROP ROLE kv_public', 'so that the role can');
GRANT USAGE ON SCHEMA public TO PUBLIC;
SELECT is(ARRAY[kavach_grant_role(current_user::regrole, 'admin'), kavach_revoke_role(current_user::regrole, 'admin')], '{f,f}', 'the owner is given nothing, and loses nothing');
SELECT is(bool_and(held), true, 'of his') FROM kavach.privileges(current_user::regrole, 'admin');
CREATE ROLE kv_giver;
CREATE ROLE kv_taker;
GRANT EXECUTE ON FUNCTION kavach_billing_report(int, int) TO kv_giver WITH GRANT OPTION;
SET LOCAL ROLE kv_giver;
GRANT EXECUTE ON FUNCTION kavach_billing_report(int, int) TO kv_taker;
RESET ROLE;
SELECT kavach_grant_role('kv_taker', 'reader');
REVOKE EXECUTE ON FUNCTION kavach_billing_report(int, int) FROM kv_giver CASCADE;
SELECT is(may::text, '(f,t,f)', 'what others granted may go, and the role is a reader still') FROM pg_temp.may('kv_taker');
SELECT throws_ok($$SELECT kavach_revoke_role('kv_two', 'root')$$, '22023', NULL, 'an unknown access: an error');
SELECT throws_ok($$SELECT kavach_revoke_role(NULL, 'app')$$, '22004', NULL, 'NULL: an error');

-- Who watches the server sees what kavach does, and nothing of the ledger.
CREATE ROLE kv_monitor IN ROLE pg_monitor;
\ir try.psql
SELECT is(pg_temp.try('kv_monitor', call), state, 'pg_monitor: ' || call)
  FROM (VALUES ('SELECT * FROM kavach.counters', 'ok'), ('SELECT * FROM kavach.counter_stats', 'ok'), ('SELECT * FROM kavach.cache_stats', 'ok'), ('SELECT * FROM kavach.batch_status', 'ok'),
               ('SELECT * FROM kavach.worker_status', 'ok'), ('SELECT * FROM kavach.tail', '42501'), ('SELECT * FROM kavach.ledger', '42501'),
               ('SELECT * FROM kavach.agents', '42501'), ('SELECT * FROM kavach.budget_status', '42501')) AS t (call, state);
SELECT is(pg_temp.try('kv_group', call), state, 'a reader: ' || call)
  FROM (VALUES ('SELECT * FROM kavach.agents', 'ok'), ('SELECT * FROM kavach.permissions', 'ok'), ('SELECT * FROM kavach.policies', 'ok'),
               ('SELECT * FROM kavach.agent', '42501')) AS t (call, state);

-- An application sees and releases what an agent that it names has left open.
SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT count(*) FROM generate_series(1, 3) n, LATERAL kavach_authorize('agt_a', 'run', 'x' || n, tokens_cost => n * 10, request_id => 'r' || n);
SELECT code FROM kavach_record_usage('agt_a', 5, request_id => 'r2');
SET LOCAL ROLE kv_super;
SELECT is(string_agg(format('%s %s %s', resource, tokens_cost, request_id), ', '), 'x1 10 r1, x3 30 r3', 'what is open') FROM kavach_unsettled('agt_a');
SELECT is(count(*), 0::bigint, 'of before some time') FROM kavach_unsettled('agt_a', '2026-03-10 12:00Z');
SELECT is(sum(u.tokens_charged), -40::numeric, 'is released') FROM kavach_unsettled('agt_a') o, LATERAL kavach_record_usage('agt_a', 0, audit_id => o.audit_id) u;
SELECT is(count(*), 0::bigint, 'then nothing is open') FROM kavach_unsettled('agt_a');
SELECT throws_ok($$SELECT * FROM kavach_unsettled('agt_b')$$, '42704', NULL, 'an unknown agent: an error');
RESET ROLE;

-- Successes that were none.
SELECT throws_ok(format('SELECT * FROM kavach_query_audit(%s)', arguments), '22023', NULL, arguments)
  FROM unnest(ARRAY['result => ''bogus''', 'actions => ''{}''', 'agent_id => ''agt_none'', result => ''Allowed''']) AS arguments;
SELECT throws_ok('SELECT * FROM kavach_query_audit(actions => ''{run,NULL}'')', '22004', NULL, 'a NULL among the actions');
SELECT is(count(*), 3::bigint, 'a known result') FROM kavach_query_audit(result => 'allowed', actions => '{run}') WHERE kind = 'authorize';
PREPARE audit (text) AS SELECT count(*) FROM kavach_query_audit(result => $1, since => '2031-01-01Z', until => '2031-02-01Z');
SET LOCAL plan_cache_mode = force_generic_plan;
SELECT throws_ok($$EXECUTE audit ('bogus')$$, '22023', NULL, 'an unknown one in a generic plan, of a month that has no rows');
PREPARE audit_of (text, text[]) AS SELECT count(*) FROM kavach_query_audit('agt_nobody', result => $1, actions => $2, max_rows => 5);
SELECT throws_ok($$EXECUTE audit_of ('bogus', '{run}')$$, '22023', NULL, 'of an agent that has none');
SELECT throws_ok($$EXECUTE audit_of ('allowed', '{}')$$, '22023', NULL, 'no action at all, too');
SELECT kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_per_day": 100}') AS each \gset
SELECT throws_ok(format('SELECT kavach_reset_policy(%L, %L)', :'each', 'anne'), '42704', NULL, 'a reset of somebody whom nobody knows: an error');
SELECT is(count(*), 0::bigint, 'which leaves nothing behind') FROM kavach.budget_baseline;
SELECT is(kavach_reset_policy(:'each', 'ann'), true, 'of somebody with usage: a reset');
SELECT kavach_update_agent('agt_a', '{"user_id": "bea"}');
SELECT is(kavach_reset_policy(:'each', 'bea'), true, 'of the owner of an agent');
SELECT is(kavach_reset_policy(:'each', 'ann'), false, 'of a former one, too');

-- A tenant's own reader: a view with the owner's rights, and nothing else.
CREATE ROLE kv_tenant;
SELECT kavach_create_agent('agt_t', 'tom', 'other', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT code FROM kavach_authorize('agt_t', 'run', 'x', tokens_cost => 1);
CREATE SCHEMA acme_reports;
CREATE VIEW acme_reports.ledger WITH (security_barrier) AS SELECT * FROM kavach.ledger WHERE tenant_id = 'acme';
GRANT USAGE ON SCHEMA acme_reports TO kv_tenant;
GRANT SELECT ON acme_reports.ledger TO kv_tenant;
SET LOCAL ROLE kv_tenant;
SELECT is(array_agg(DISTINCT tenant_id), '{acme}', 'the view of a tenant gives his rows') FROM acme_reports.ledger;
SELECT throws_ok('SELECT * FROM kavach.ledger', '42501', NULL, 'and the ledger none');
RESET ROLE;

-- Row security on the ledger changes nothing for those who read through reports and views.
SET LOCAL kavach.allow_alter = on;
ALTER TABLE kavach.audit_log ENABLE ROW LEVEL SECURITY;
SET LOCAL ROLE kv_group;
SELECT is(array_agg(DISTINCT tenant_id), '{acme,other}', 'row security: a reader of the view has all rows') FROM kavach.ledger;
SELECT is(array_agg(DISTINCT tenant_id), '{acme,other}', 'and of the reports') FROM kavach_query_audit();
RESET ROLE;

SELECT * FROM finish();
ROLLBACK;
