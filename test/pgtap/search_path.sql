-- search_path.sql: what a caller puts in front of pg_catalog changes nothing.
BEGIN;
SELECT plan(28);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';

SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "mcp:**", "actions": ["run"], "constraints": {"allowed_arg_patterns": ["ok*"], "ip_allowlist": ["10.0.0.0/8"], "time_window": {"start": "12:00", "end": "13:00"}, "max_calls_per_hour": 100}}]');
SELECT kavach_create_policy(tenant_id => 'acme', limits => '{"max_tokens_cost_per_day": 100, "max_calls_per_month": 50}');

CREATE TABLE public.kv_told (n int, told text);
CREATE FUNCTION public.kv_tell(n int, told text) RETURNS void LANGUAGE sql SET search_path = pg_catalog, pg_temp AS 'INSERT INTO public.kv_told VALUES ($1, $2)';
CREATE ROLE kv_caller;
SELECT kavach_grant_role('kv_caller', 'admin');
GRANT ALL ON public.kv_told TO kv_caller;

-- Operators, functions, types and relations; and a type of the caller's own that any text or JSON is cast to.
\ir traps.psql
CREATE SCHEMA evil;
SELECT kv_plant('evil') > 2000 AND kv_plant('pg_temp') > 2000;
GRANT USAGE ON SCHEMA evil TO kv_caller;
CREATE TYPE evil.own AS (value pg_catalog.text);
CREATE FUNCTION evil.own(pg_catalog.text) RETURNS evil.own LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked' USING ERRCODE = 'KV666'; END $$;
CREATE FUNCTION evil.own(pg_catalog.jsonb) RETURNS evil.own LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked' USING ERRCODE = 'KV666'; END $$;
CREATE CAST (pg_catalog.text AS evil.own) WITH FUNCTION evil.own(pg_catalog.text) AS IMPLICIT;
CREATE CAST (pg_catalog.jsonb AS evil.own) WITH FUNCTION evil.own(pg_catalog.jsonb) AS IMPLICIT;

SET LOCAL search_path = pg_temp, evil, pg_catalog, public;
SET LOCAL ROLE kv_caller;
SELECT kv_tell(1, concat_ws(' ', code, tokens_remaining, calls_remaining)) FROM kavach_authorize('agt_a', 'run', 'mcp:x:y', 60, '{"a": "ok then"}', '10.0.0.1', 'r1', '{"m": 1}', 1);
SELECT kv_tell(2, concat_ws(' ', code, tokens_remaining, calls_remaining)) FROM kavach_authorize('agt_a', 'run', 'mcp:x:y', 60, '{"a": "ok then"}', '10.0.0.1', 'r1', '{"m": 1}', 1);
SELECT kv_tell(3, concat_ws(' ', code, tokens_remaining)) FROM kavach_authorize('agt_a', 'run', 'mcp:x:y', 41, '{"a": "ok"}', '10.0.0.1');
SELECT kv_tell(4, code) FROM kavach_authorize('agt_a', 'run', 'mcp:x:y', 1, '{"a": "no"}', '10.0.0.1');
SELECT kv_tell(5, concat_ws(' ', code, tokens_charged, tokens_remaining)) FROM kavach_record_usage('agt_a', 10, NULL, 'r1');
SELECT kv_tell(6, concat_ws(' ', code, tokens_remaining)) FROM kavach_check_budget('agt_a', 90);
SELECT kv_tell(7, kavach_create_agent('agt_b', 'bob', NULL, 'Bob', '[{"resource": "a:*", "actions": ["run"]}]'));
SELECT kv_tell(8, concat_ws(' ', kavach_update_agent('agt_b', '{"name": "Rob", "expires_at": "2027-01-01Z"}'), kavach_revoke_agent('agt_b', 'gone'), kavach_restore_agent('agt_b')));
SELECT kv_tell(9, concat_ws(' ', kavach_adjust('agt_a', 5, 'x') IS NOT NULL));
SELECT kv_tell(10, concat_ws(' ', agent_id, calls, denied, tokens_cost)) FROM kavach_cost_by_agent('2026-03-01Z', '2026-04-01Z');
SELECT kv_tell(11, concat_ws(' ', tenant_id, user_id, calls, tokens_cost)) FROM kavach_billing_report(2026, 3);
SELECT kv_tell(12, concat_ws(' ', kind, tokens_cost)) FROM kavach_export('2026-03-01Z', '2026-04-01Z') WHERE kind OPERATOR(pg_catalog.=) 'adjustment'::pg_catalog.text;
SELECT kv_tell(13, concat_ws(' ', measure, period, used, remaining)) FROM kavach.budget_status WHERE measure OPERATOR(pg_catalog.=) 'tokens'::pg_catalog.text;
SELECT kv_tell(14, concat_ws(' ', kavach_revoke_permission(kavach_grant_permission('agt_b', 'b:**', '{run,stop}', '{"max_calls_per_hour": 2}'))));
SELECT kv_tell(15, concat_ws(' ', kavach_update_policy(p, '{"max_calls_per_day": 7}', 'warn', false), kavach_reset_policy(p, 'ann'), kavach_drop_policy(p)))
  FROM kavach_create_policy(each => 'user', limits => '{"max_tokens_cost_per_month": 9}') AS p;
SELECT kv_tell(16, concat_ws(' ', action, code, tokens_cost)) FROM kavach_query_audit(agent_id => 'agt_a', since => '2026-03-01Z', max_rows => 1, result => 'denied');
SELECT kv_tell(17, concat_ws(' ', user_id, calls, tokens_cost)) FROM kavach_cost_by_user(NULL, NULL);
SELECT kv_tell(18, concat_ws(' ', day, calls, tokens_cost)) FROM kavach_cost_by_day('agt_a', NULL, NULL);
SELECT kv_tell(19, concat_ws(' ', jsonb_typeof)) FROM kavach_export_json() AS j, LATERAL pg_catalog.jsonb_typeof(j) LIMIT 1;
SELECT kv_tell(20, concat_ws(' ', tokens_cost)) FROM kavach.usage_by_user;
SELECT kv_tell(21, concat_ws(' ', tokens_used, tokens_pending)) FROM kavach.counters WHERE subject OPERATOR(pg_catalog.=) 'acme'::pg_catalog.text AND period OPERATOR(pg_catalog.=) 'hour'::pg_catalog.text AND period_start OPERATOR(pg_catalog.=) '2026-03-10 12:00Z'::pg_catalog.timestamptz;
RESET ROLE;
SELECT kv_tell(22, concat_ws(' ', kavach_grant_role('kv_caller', 'admin')));
CREATE ROLE kv_second;
SELECT kv_tell(23, concat_ws(' ', kavach_grant_role('kv_second', 'reader')));
-- the first call of a month makes a partition, and its counters are read from the ledger
SET LOCAL kavach.clock = '2026-07-10 12:34:56+00';
SET LOCAL ROLE kv_caller;
SELECT kv_tell(24, concat_ws(' ', code, tokens_remaining, calls_remaining)) FROM kavach_authorize('agt_a', 'run', 'mcp:x:y', 60, '{"a": "ok"}', '10.0.0.1');
RESET ROLE;
SET LOCAL search_path = pg_catalog, public, pg_temp;

SELECT is((SELECT told FROM public.kv_told k WHERE k.n = t.n), expected, what)
  FROM (VALUES
    (1, 'allowed 40 49', 'authorize'), (2, 'allowed 40 49', 'a retry'), (3, 'budget_exceeded 40', 'a refusal'), (4, 'argument_not_allowed', 'a constraint'),
    (5, 'recorded -50 90', 'record_usage'), (6, 'allowed 90', 'check_budget'), (7, 'agt_b', 'create_agent'), (8, 't t t', 'update_, revoke_ and restore_agent'), (9, 't', 'adjust'),
    (10, 'agt_a 3 2 15', 'cost_by_agent'), (11, 'acme ann 3 15', 'billing_report'), (12, 'adjustment 5', 'export'), (13, 'tokens day 15 85', 'budget_status'),
    (14, 't', 'grant_ and revoke_permission'), (15, 't t t', 'create_, update_, reset_ and drop_policy'), (16, 'run argument_not_allowed 0', 'query_audit'),
    (17, 'ann 3 15', 'cost_by_user'), (18, '2026-03-10 3 15', 'cost_by_day'), (19, 'object', 'export_json'), (20, '15', 'usage_by_user'), (21, '0 65', 'counters'),
    (22, 'f', 'grant_role: what is held'), (23, 't', 'grant_role: what is not'), (24, 'allowed 40 49', 'a new month')) AS t (n, expected, what);
SELECT is(name, 'Rob', 'and the right table was written') FROM kavach.agent WHERE agent_id = 'agt_b';
SELECT is(count(*), 0::bigint, 'and no other') FROM evil.agent;
SELECT is(count(*), 6::bigint, 'the ledger too') FROM kavach.audit_log;
SELECT throws_ok('SELECT evil.lower(''A''::pg_catalog.text)', 'KV666', NULL, 'the traps are live');

SELECT * FROM finish();
ROLLBACK;
