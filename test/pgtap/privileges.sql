-- privileges.sql: what a bare role, an app, a reader and an admin can do, and nothing more.
BEGIN;
SELECT plan(72);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';

CREATE ROLE kv_bare;
CREATE ROLE kv_app;
CREATE ROLE kv_reader;
CREATE ROLE kv_admin;
SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_total": 1000}') AS pol \gset
SELECT is(kavach_grant_role('kv_app', 'app'), true, 'grant_role: app');
SELECT is(kavach_grant_role('kv_reader', 'reader'), true, 'reader');
SELECT is(kavach_grant_role('kv_admin', 'admin'), true, 'admin');
SELECT throws_ok($$SELECT kavach_grant_role('kv_bare', 'root')$$, '22023', NULL, 'and nothing else');

-- Each call as each role: 'ok' or its SQLSTATE, rolled back.
CREATE FUNCTION pg_temp.try(role text, call text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE state text := 'ok';
BEGIN
  BEGIN
    PERFORM set_config('role', role, true);
    EXECUTE call;
    RAISE SQLSTATE 'KV001';
  EXCEPTION WHEN SQLSTATE 'KV001' THEN NULL; WHEN OTHERS THEN state := SQLSTATE;
  END;
  PERFORM set_config('role', 'none', true);
  RETURN state;
END $$;

-- calls, and the least access that may make them
CREATE TEMP TABLE call (call text, access text);
INSERT INTO call VALUES
  ($$SELECT * FROM kavach_authorize('agt_a', 'run', 'x', tokens_cost => 1)$$, 'app'),
  ($$SELECT * FROM kavach_record_usage('agt_a', 1)$$, 'app'),
  ($$SELECT * FROM kavach_check_budget('agt_a')$$, 'app'),
  ('SELECT * FROM kavach_query_audit()', 'reader'),
  ('SELECT * FROM kavach_cost_by_agent(NULL, NULL)', 'reader'),
  ('SELECT * FROM kavach_cost_by_user(NULL, NULL)', 'reader'),
  ('SELECT * FROM kavach_cost_by_day(NULL, NULL, NULL)', 'reader'),
  ('SELECT * FROM kavach_billing_report(2026, 3)', 'reader'),
  ('SELECT * FROM kavach_export()', 'reader'),
  ('SELECT * FROM kavach_export_json()', 'reader'),
  ('SELECT * FROM kavach.usage_by_agent', 'reader'),
  ('SELECT * FROM kavach.usage_by_user', 'reader'),
  ('SELECT * FROM kavach.usage_by_day', 'reader'),
  ('SELECT * FROM kavach.unsettled', 'reader'),
  ('SELECT * FROM kavach.budget_status', 'reader'),
  ('SELECT * FROM kavach.ledger', 'reader'),
  ($$SELECT kavach_create_agent(user_id => 'eve')$$, 'admin'),
  ($$SELECT kavach_update_agent('agt_a', '{"name": "x"}')$$, 'admin'),
  ($$SELECT kavach_revoke_agent('agt_a')$$, 'admin'),
  ($$SELECT kavach_restore_agent('agt_a')$$, 'admin'),
  ($$SELECT kavach_grant_permission('agt_a', '*', '{x}')$$, 'admin'),
  ('SELECT kavach_revoke_permission(1)', 'admin'),
  ($$SELECT kavach_adjust('agt_a', -1, 'x')$$, 'admin'),
  ($$SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_calls_total": 9}')$$, 'admin'),
  (format('SELECT kavach_update_policy(%L, enabled => false)', :'pol'), 'admin'),
  (format('SELECT kavach_drop_policy(%L)', :'pol'), 'admin'),
  (format('SELECT kavach_reset_policy(%L)', :'pol'), 'admin'),
  ($$SELECT kavach_grant_role('kv_bare', 'admin')$$, 'nobody'),
  ($$SET kavach.clock = '2026-01-01Z'$$, 'nobody'),
  ($$SET kavach.request_retention = '30d'$$, 'nobody');
SELECT is(string_agg(pg_temp.try(role, call), ' ' ORDER BY role), CASE access
            WHEN 'app' THEN 'ok ok 42501 42501' WHEN 'reader' THEN 'ok 42501 42501 ok' WHEN 'admin' THEN 'ok 42501 42501 42501' ELSE '42501 42501 42501 42501' END,
          access || ': ' || call)
  FROM call, unnest('{kv_admin,kv_app,kv_bare,kv_reader}'::text[]) AS role GROUP BY call, access;

-- No role reads or writes a table by hand, the admin included where it writes.
SELECT is(pg_temp.try(role, statement), '42501', role || ': ' || statement)
  FROM unnest('{kv_app,kv_bare,kv_reader}'::text[]) AS role,
       (VALUES ('INSERT INTO kavach.audit_log (agent_id) VALUES (''agt_a'')'), ('UPDATE kavach.audit_log SET tokens_cost = 0'),
               ('DELETE FROM kavach.audit_log'), ('TRUNCATE kavach.audit_log'), ('UPDATE kavach.agent SET status = ''active'''),
               ('DELETE FROM kavach.budget_limit'), ('INSERT INTO kavach.permission (agent_id) VALUES (''agt_a'')')) AS t (statement);
SELECT is(pg_temp.try('kv_admin', statement), '42501', 'kv_admin: ' || statement)
  FROM (VALUES ('INSERT INTO kavach.audit_log (agent_id) VALUES (''agt_a'')'), ('UPDATE kavach.audit_log SET tokens_cost = 0'), ('DELETE FROM kavach.audit_log'), ('TRUNCATE kavach.audit_log')) AS t (statement);
SELECT is(pg_temp.try(role, 'SELECT * FROM ' || noun), '42501', role || ' cannot read ' || noun)
  FROM unnest('{kv_app,kv_bare}'::text[]) AS role, unnest('{kavach.audit_log,kavach.ledger,kavach.agent,kavach.permission,kavach.budget_policy}'::text[]) AS noun;

-- A partition made later inherits nothing that opens it.
SELECT is(count(*), 0::bigint, 'no role has a right on a partition')
  FROM pg_inherits, unnest('{kv_app,kv_bare,kv_reader}'::text[]) AS role, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE}'::text[]) AS p
 WHERE inhparent = 'kavach.audit_log'::regclass AND has_table_privilege(role, inhrelid, p);
-- Granting twice changes nothing; granting is per role, not for everybody.
SELECT lives_ok($$SELECT kavach_grant_role('kv_app', 'app')$$, 'granting twice is no error');
SELECT is(pg_temp.try('kv_bare', 'SELECT * FROM kavach_check_budget(''agt_a'')'), '42501', 'others stay out');

SELECT * FROM finish();
ROLLBACK;
