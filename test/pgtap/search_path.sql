-- search_path.sql: what a caller puts in front of pg_catalog changes nothing.
BEGIN;
SELECT plan(14);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-03-10 12:34:56+00';

SELECT kavach_create_agent('agt_a', 'ann', 'acme', permissions => '[{"resource": "mcp:**", "actions": ["run"], "constraints": {"allowed_arg_patterns": ["ok*"], "ip_allowlist": ["10.0.0.0/8"], "time_window": {"start": "12:00", "end": "13:00"}, "max_calls_per_hour": 100}}]');
SELECT kavach_create_policy(tenant_id => 'acme', limits => '{"max_tokens_cost_per_day": 100, "max_calls_per_month": 50}');

-- A schema that shadows what an unqualified name could mean. Whatever of it is run, raises.
CREATE SCHEMA evil;
CREATE FUNCTION evil.trap() RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'hijacked' USING ERRCODE = 'KV666'; END $$;
DO $$
DECLARE o record; f record; n text;
BEGIN
  -- operators on the types that a decision compares and adds
  FOR o IN SELECT DISTINCT op.oprname, l.typname AS l, r.typname AS r, res.typname AS res
             FROM pg_operator op JOIN pg_type l ON l.oid = oprleft JOIN pg_type r ON r.oid = oprright JOIN pg_type res ON res.oid = oprresult
            WHERE op.oprname IN ('=', '<>', '<', '<=', '>', '>=', '+', '-', '||', '->', '->>', '@>', '?', '<<', '<<=', '>>=')
              AND l.typname IN ('text', 'int4', 'int8', 'numeric', 'timestamptz', 'uuid', 'jsonb', 'inet', 'bool', 'interval')
              AND r.typname IN ('text', 'int4', 'int8', 'numeric', 'timestamptz', 'uuid', 'jsonb', 'inet', 'bool', 'interval') LOOP
    n := 'op_' || md5(o.oprname || o.l || o.r);
    EXECUTE format('CREATE FUNCTION evil.%I(%s, %s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION ''hijacked'' USING ERRCODE = ''KV666''; END $f$', n, o.l, o.r, o.res);
    EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %s, FUNCTION = evil.%I)', o.oprname, o.l, o.r, n);
  END LOOP;
  -- functions
  FOR f IN SELECT DISTINCT p.proname, pg_get_function_identity_arguments(p.oid) AS args, format_type(p.prorettype, NULL) AS res
             FROM pg_proc p WHERE pronamespace = 'pg_catalog'::regnamespace AND prokind = 'f' AND NOT proretset AND provariadic = 0
              AND proname IN ('now', 'clock_timestamp', 'date_trunc', 'lower', 'jsonb_typeof', 'length', 'octet_length', 'gen_random_uuid', 'timezone', 'to_char', 'replace', 'split_part', 'left', 'starts_with', 'array_length', 'timestamptz', 'text', 'int8')
              AND pg_get_function_identity_arguments(p.oid) !~ 'internal|any' LOOP
    EXECUTE format('CREATE FUNCTION evil.%I(%s) RETURNS %s LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION ''hijacked'' USING ERRCODE = ''KV666''; END $f$', f.proname, f.args, f.res);
  END LOOP;
  EXECUTE 'CREATE AGGREGATE evil.sum(bigint) (SFUNC = int8mi, STYPE = bigint)';
  EXECUTE 'CREATE AGGREGATE evil.count(*) (SFUNC = int8inc, STYPE = bigint, INITCOND = ''1000'')';
END $$;
-- tables named like ours, also where pg_temp is looked at first
DO $$
DECLARE t text;
BEGIN
  FOREACH t IN ARRAY '{agent,permission,budget_policy,budget_limit,budget_baseline,audit_log,audit_log_2026_03,ledger}'::text[] LOOP
    EXECUTE format('CREATE TEMP TABLE %I AS SELECT * FROM kavach.%I LIMIT 0', t, CASE t WHEN 'audit_log_2026_03' THEN 'audit_log' ELSE t END);
    EXECUTE format('CREATE TABLE evil.%I AS SELECT * FROM kavach.%I LIMIT 0', t, CASE t WHEN 'audit_log_2026_03' THEN 'audit_log' ELSE t END);
  END LOOP;
END $$;
CREATE DOMAIN evil.bigint_ AS int CHECK (VALUE < 0);
CREATE FUNCTION pg_temp.none() RETURNS int LANGUAGE sql AS 'SELECT 0';

CREATE TABLE public.kv_told (n int, told text);
CREATE FUNCTION public.kv_tell(n int, told text) RETURNS void LANGUAGE sql SET search_path = public, pg_catalog AS 'INSERT INTO public.kv_told VALUES ($1, $2)';
CREATE ROLE kv_caller;
SELECT kavach_grant_role('kv_caller', 'admin');
GRANT USAGE ON SCHEMA evil TO kv_caller;
GRANT ALL ON public.kv_told TO kv_caller;

SET LOCAL search_path = pg_temp, evil, pg_catalog, public;
SET LOCAL ROLE kv_caller;
SELECT kv_tell(1, concat_ws(' ', code, tokens_remaining, calls_remaining)) FROM kavach_authorize('agt_a', 'run', 'mcp:x:y', 60, '{"a": "ok then"}', '10.0.0.1', 'r1', '{"m": 1}', 1);
SELECT kv_tell(2, concat_ws(' ', code, tokens_remaining, calls_remaining)) FROM kavach_authorize('agt_a', 'run', 'mcp:x:y', 60, '{"a": "ok then"}', '10.0.0.1', 'r1', '{"m": 1}', 1);
SELECT kv_tell(3, concat_ws(' ', code, tokens_remaining)) FROM kavach_authorize('agt_a', 'run', 'mcp:x:y', 41, '{"a": "ok"}', '10.0.0.1');
SELECT kv_tell(4, code) FROM kavach_authorize('agt_a', 'run', 'mcp:x:y', 1, '{"a": "no"}', '10.0.0.1');
SELECT kv_tell(5, concat_ws(' ', code, tokens_charged, tokens_remaining)) FROM kavach_record_usage('agt_a', 10, NULL, 'r1');
SELECT kv_tell(6, concat_ws(' ', code, tokens_remaining)) FROM kavach_check_budget('agt_a', 90);
SELECT kv_tell(7, kavach_create_agent('agt_b', 'bob', NULL, 'Bob', '[{"resource": "a:*", "actions": ["run"]}]'));
SELECT kv_tell(8, kavach_revoke_agent('agt_b', 'gone')::text);
SELECT kv_tell(9, (kavach_adjust('agt_a', 5, 'x') IS NOT NULL)::text);
SELECT kv_tell(10, concat_ws(' ', agent_id, calls, denied, tokens_cost)) FROM kavach_cost_by_agent('2026-03-01Z', '2026-04-01Z');
SELECT kv_tell(11, concat_ws(' ', tenant_id, user_id, calls, tokens_cost)) FROM kavach_billing_report(2026, 3);
SELECT kv_tell(12, concat_ws(' ', kind, tokens_cost)) FROM kavach_export('2026-03-01Z', '2026-04-01Z') WHERE kind LIKE 'adj%';
SELECT kv_tell(13, concat_ws(' ', measure, period, used, remaining)) FROM kavach.budget_status WHERE measure LIKE 'tok%';
RESET ROLE;
SET LOCAL search_path = public, pg_catalog;

SELECT is((SELECT told FROM public.kv_told k WHERE k.n = t.n), expected, what)
  FROM (VALUES
    (1, 'allowed 40 49', 'authorize'), (2, 'allowed 40 49', 'a retry'), (3, 'budget_exceeded 40', 'a refusal'), (4, 'argument_not_allowed', 'a constraint'),
    (5, 'recorded -50 90', 'record_usage'), (6, 'allowed 90', 'check_budget'), (7, 'agt_b', 'create_agent'), (8, 'true', 'revoke_agent'), (9, 'true', 'adjust'),
    (10, 'agt_a 3 2 15', 'cost_by_agent'), (11, 'acme ann 3 15', 'billing_report'), (12, 'adjustment 5', 'export'), (13, 'tokens day 15 85', 'budget_status')) AS t (n, expected, what);
SELECT is(status, 'revoked', 'and the right table was written') FROM kavach.agent WHERE agent_id = 'agt_b';

SELECT * FROM finish();
ROLLBACK;
