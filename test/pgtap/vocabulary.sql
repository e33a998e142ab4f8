-- vocabulary.sql: what C tells SQL of scopes, windows and limits, and that the tables admit just these.
BEGIN;
SELECT plan(24);
SET LOCAL timezone = 'Asia/Kolkata';

SELECT results_eq($$SELECT s, kavach.scope_has_id(s) FROM unnest('{agent,user,tenant,all,permission,Agent,agen,""}'::text[]) s$$,
  $$VALUES ('agent', true), ('user', true), ('tenant', true), ('all', false), ('permission', NULL), ('Agent', NULL), ('agen', NULL), ('', NULL)$$,
  'scopes that budgets have: with ids, or without');
SELECT results_eq($$SELECT s, kavach.of_scope(s, 'a', 'u', 't') FROM unnest('{agent,user,tenant,all,permission,NULL}'::text[]) s$$,
  $$VALUES ('agent', 'a'), ('user', 'u'), ('tenant', 't'), ('all', NULL), ('permission', NULL), (NULL, NULL)$$, 'whose id is that of a scope');
SELECT is(kavach.of_scope('user', 'a', NULL, 't'), NULL, 'or there is none');
SELECT is(kavach.policy_scope('a', NULL, NULL, NULL, NULL), 'agent', 'whom a policy is about: an agent');
SELECT is(kavach.policy_scope(NULL, 'u', NULL, NULL, false), 'user', 'a user');
SELECT is(kavach.policy_scope(NULL, NULL, 't', NULL, false), 'tenant', 'a tenant');
SELECT is(kavach.policy_scope(NULL, NULL, NULL, s, false), s, 'each ' || s) FROM unnest('{agent,user,tenant}'::text[]) s;
SELECT is(kavach.policy_scope(NULL, NULL, NULL, NULL, true), 'all', 'all');

-- What callers read.
CREATE FUNCTION pg_temp.says(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  detail text;
  hint text;
  name text;
BEGIN
  EXECUTE statement;
  RETURN 'ok';
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT, name = CONSTRAINT_NAME;
  RETURN CASE SQLSTATE WHEN '23514' THEN name ELSE concat_ws(' | ', SQLSTATE, SQLERRM, nullif(detail, ''), nullif(hint, '')) END;
END
$$;
SELECT is(pg_temp.says($$SELECT kavach_create_policy(user_id => 'u', each => 'user', all_agents => true)$$),
  '22023 | a policy needs exactly one scope | 3 were given. | Give one of agent_id, user_id, tenant_id, each (''agent'', ''user'' or ''tenant'') or all_agents => true.', 'too many scopes');
SELECT is(pg_temp.says($$SELECT kavach_create_policy(all_agents => false)$$),
  '22023 | a policy needs exactly one scope | 0 were given. | Give one of agent_id, user_id, tenant_id, each (''agent'', ''user'' or ''tenant'') or all_agents => true.', 'none');
SELECT is(pg_temp.says($$SELECT kavach_create_policy(each => 'all')$$),
  '22023 | unrecognized kind of subject "all" | Valid values of each are agent, user and tenant.', 'each of a pool');
SELECT is(pg_temp.says($$SELECT kavach_create_policy(all_agents => true, limits => '{"max_tokens_per_hour": 1}')$$),
  '22023 | unrecognized limit "max_tokens_per_hour" | Valid limits are max_tokens_cost_per_hour, max_tokens_cost_per_day, max_tokens_cost_per_month, max_tokens_cost_total, '
  'max_calls_per_hour, max_calls_per_day, max_calls_per_month and max_calls_total. | To remove a limit, set it to null.', 'a limit that is none');

SELECT results_eq('SELECT key, measure, period FROM kavach.limit_keys()',
  $$SELECT concat('max_', a, '_', CASE p WHEN 'total' THEN p ELSE 'per_' || p END), m, p
      FROM (VALUES (1, 'tokens', 'tokens_cost'), (2, 'calls', 'calls')) AS m (n, m, a), unnest('{hour,day,month,total}'::text[]) WITH ORDINALITY AS p (p, o) ORDER BY n, o$$,
  'limits: every measure in every window');
SELECT lives_ok($$SELECT kavach_create_policy(all_agents => true, limits => (SELECT jsonb_object_agg(key, 1) FROM kavach.limit_keys()), policy_id => 'pol_every')$$, 'every one can be set');
SELECT bag_eq($$SELECT jsonb_object_keys(limits) FROM kavach.policies WHERE policy_id = 'pol_every'$$, 'SELECT key FROM kavach.limit_keys()', 'and is shown as it was written');

-- Windows, where they turn.
SELECT is_empty($$
  SELECT t, w.* FROM unnest('{2026-03-10 12:30:00Z,2026-02-28 23:59:59.999999Z,2026-03-01Z,2024-02-29 23:00Z,1999-12-31 23:59:59Z,1970-01-01Z,2025-12-31 18:30Z,9999-12-31 23:59:59Z}'::timestamptz[]) AS t,
    LATERAL (SELECT * FROM kavach.windows(t) EXCEPT
             (SELECT p, date_trunc(p, t, 'UTC'), (date_trunc(p, t, 'UTC') AT TIME ZONE 'UTC' + ('1 ' || p)::interval) AT TIME ZONE 'UTC' FROM unnest('{hour,day,month}'::text[]) p
               UNION ALL SELECT 'total', '-infinity', NULL)) w
$$, 'windows are those of the calendar in UTC');
SELECT is(array_agg(period), '{hour,day,month,total}', 'the shortest first') FROM kavach.windows('2026-03-10Z');
SELECT results_eq($$SELECT p, kavach.is_period(p) FROM unnest('{hour,day,month,total,five_minutes,year,Hour,NULL}'::text[]) p$$,
  $$VALUES ('hour', true), ('day', true), ('month', true), ('total', true), ('five_minutes', false), ('year', false), ('Hour', false), (NULL, NULL)$$, 'and limits have these');

-- What is written by hand is checked by the same.
SELECT results_eq(
  $$SELECT scope, subject, each, pg_temp.says(format('INSERT INTO kavach.budget_policy (policy_id, scope, subject, each) VALUES (%L, %L, %L, %L)', 'pol_' || n, scope, subject, each))
      FROM (VALUES (1, 'agent', 'a', false), (2, 'agent', 'a', true), (3, 'user', NULL, true), (4, 'tenant', NULL, false), (5, 'all', NULL, false), (6, 'all', NULL, true),
                   (7, 'all', 'x', false), (8, 'team', NULL, true), (9, 'team', NULL, false), (10, 'permission', NULL, true)) AS t (n, scope, subject, each) ORDER BY n$$,
  $$VALUES ('agent', 'a', false, 'ok'), ('agent', 'a', true, 'budget_policy_one_scope'), ('user', NULL, true, 'ok'), ('tenant', NULL, false, 'budget_policy_one_scope'),
           ('all', NULL, false, 'ok'), ('all', NULL, true, 'budget_policy_one_scope'), ('all', 'x', false, 'budget_policy_one_scope'),
           ('team', NULL, true, 'budget_policy_scope_check'), ('team', NULL, false, 'budget_policy_one_scope'), ('permission', NULL, true, 'budget_policy_scope_check')$$, 'scopes');
SELECT is(pg_temp.says($$INSERT INTO kavach.budget_limit VALUES ('pol_x', 'tokens', 'five_minutes', 1)$$), 'budget_limit_period_check', 'windows');
SELECT alike(pg_temp.says($$INSERT INTO kavach.budget_limit VALUES ('pol_x', 'tokens', NULL, 1)$$), '23502%', 'and there has to be one');
SELECT is(pg_temp.says($$INSERT INTO kavach.budget_policy (policy_id, each) VALUES ('pol_null', true)$$) LIKE '23502%', true, 'as there has to be a scope');

SELECT * FROM finish();
ROLLBACK;
