-- privileges.sql: what a bare role, an app, a reader and an admin can do, and nothing more.
BEGIN;
SELECT plan(87);
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

\ir try.psql

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
  ('SELECT * FROM kavach.usage', 'reader'),
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
  ($$SELECT kavach_grant_role('kv_bare', 'admin')$$, 'nobody');
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

-- All that there is, whatever was added since. Each function is called, too, with NULLs (subqueries, as a
-- strict one is not called otherwise); what a role is kept from by its schema alone shows itself once it
-- may look into that.
CREATE TEMP VIEW member AS
  SELECT classid, objid FROM pg_depend JOIN pg_extension e ON refclassid = 'pg_extension'::regclass AND refobjid = e.oid
   WHERE extname = 'kavach' AND deptype = 'e';
GRANT USAGE ON SCHEMA kavach TO kv_bare, kv_app;
CREATE TEMP TABLE held AS
  SELECT role, p.proname::text AS function
    FROM unnest('{kv_bare,kv_app,kv_reader,kv_admin}'::text[]) AS role, member JOIN pg_proc p ON classid = 'pg_proc'::regclass AND p.oid = objid
   WHERE has_function_privilege(role, p.oid, 'EXECUTE')
      OR pg_temp.try(role, format('SELECT %s(%s)', p.oid::regproc,
           (SELECT string_agg(format('(SELECT NULL::%s)', format_type(a.type, NULL)), ', ' ORDER BY a.n) FROM unnest(p.proargtypes) WITH ORDINALITY AS a (type, n)))) <> '42501';
SELECT is((SELECT array_agg(function ORDER BY function COLLATE "C") FROM held WHERE held.role = t.role),
          (SELECT array_agg(f ORDER BY f COLLATE "C") FROM unnest(functions) AS f), t.role || ' executes what it is given, and nothing else')
  FROM (VALUES
    ('kv_bare', NULL::text[]),
    ('kv_app', '{kavach_authorize,kavach_record_usage,kavach_check_budget,kavach_unsettled}'),
    ('kv_reader', '{kavach_query_audit,kavach_cost_by_agent,kavach_cost_by_user,kavach_cost_by_day,kavach_billing_report,kavach_usage_report,kavach_export,kavach_export_json,
                    clock_now,range_start,no_rows,range_edge,require_months,kept_since,audit_limit,is_page,audit_page,usage_between,usage_grouped,report_whole,groups_by,label_keys,check_report,uuid7_since,uuid7_until,month_start,month_end,windows,limit_keys,of_scope,uuid7_ts,charged_at,current_usage,read_counters,read_counter_stats,read_cache_stats,read_worker,batch_holders}'),
    ('kv_admin', (SELECT array_agg(proname) FROM member JOIN pg_proc ON oid = objid AND classid = 'pg_proc'::regclass WHERE proname LIKE 'kavach\_%' AND proname NOT IN ('kavach_grant_role', 'kavach_revoke_role'))
                 || '{clock_now,range_start,no_rows,range_edge,require_months,kept_since,audit_limit,is_page,audit_page,usage_between,usage_grouped,report_whole,groups_by,label_keys,check_report,uuid7_since,uuid7_until,month_start,month_end,windows,limit_keys,of_scope,uuid7_ts,charged_at,current_usage,read_counters,read_counter_stats,read_cache_stats,read_worker,batch_holders,wake_worker}'::text[])) AS t (role, functions);

SELECT is(code, 'allowed', 'a month begins') FROM kavach_authorize('agt_a', 'run', 'x');
SELECT is(count(*) > 0, true, 'so there is a partition') FROM pg_inherits WHERE inhparent = 'kavach.audit_log'::regclass;
CREATE TEMP VIEW relation AS
  SELECT oid, relkind, true AS member FROM pg_class WHERE oid IN (SELECT objid FROM member WHERE classid = 'pg_class'::regclass)
   UNION ALL SELECT inhrelid, 'r', false FROM pg_inherits WHERE inhparent = 'kavach.audit_log'::regclass;
SELECT is((SELECT string_agg(p || ' on ' || oid::regclass, ', ' ORDER BY oid, p)
             FROM relation, unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS p
            WHERE has_table_privilege(role, oid, p) OR p IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') AND has_any_column_privilege(role, oid, p)),
          (SELECT string_agg('SELECT on ' || oid::regclass, ', ' ORDER BY oid) FROM relation WHERE member AND relkind::text = ANY (kinds)),
          role || ': reads what it is given, and writes nothing')
  FROM (VALUES ('kv_bare', '{}'::text[]), ('kv_app', '{}'), ('kv_reader', '{v}'), ('kv_admin', '{v,r,p}')) AS t (role, kinds);
SELECT is(string_agg(role || ' ' || oid::regclass, ', '), NULL, 'a sequence is nobody''s')
  FROM relation, unnest('{kv_bare,kv_app,kv_reader,kv_admin}'::text[]) AS role WHERE relkind = 'S' AND has_sequence_privilege(role, oid, 'USAGE, SELECT, UPDATE');
SELECT is(string_agg(privilege_type || ' on ' || c.oid::regclass, ', '), NULL, 'and there is nothing but SELECT')
  FROM relation JOIN pg_class c USING (oid), aclexplode(c.relacl) WHERE grantee <> relowner AND privilege_type <> 'SELECT';
SELECT is(string_agg(role || ' ' || name, ', '), NULL, 'a setting is nobody''s')
  FROM pg_settings, unnest('{kv_bare,kv_app,kv_reader,kv_admin}'::text[]) AS role WHERE name LIKE 'kavach.%' AND pg_temp.try(role, format('SET %s = %L', name, setting)) = 'ok';
SELECT is(string_agg(role, ', '), NULL, 'and nobody puts anything into the schema')
  FROM unnest('{kv_bare,kv_app,kv_reader,kv_admin}'::text[]) AS role WHERE has_schema_privilege(role, 'kavach', 'CREATE');

-- Granting twice changes nothing; granting is per role, not for everybody.
SELECT lives_ok($$SELECT kavach_grant_role('kv_app', 'app')$$, 'granting twice is no error');
SELECT is(pg_temp.try('kv_bare', 'SELECT * FROM kavach_check_budget(''agt_a'')'), '42501', 'others stay out');
REVOKE EXECUTE ON FUNCTION kavach_authorize, kavach_record_usage, kavach_check_budget FROM kv_app;
SELECT is(pg_temp.try('kv_app', 'SELECT * FROM kavach_check_budget(''agt_a'')'), '42501', 'REVOKE takes it back');
SELECT is(kavach_grant_role('kv_app', 'app'), true, 'and what is gone is given again');
CREATE ROLE "kv ""O'Neill""";
SELECT is(kavach_grant_role('"kv ""O''Neill"""', 'app'), true, 'a role of any name');

SELECT * FROM finish();
ROLLBACK;
