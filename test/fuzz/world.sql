-- world.sql: what the fuzzer calls meet: agents, budgets, a ledger of some months, and helpers.
--
-- What has "guarded" in its name is only ever asked for and never changed, settled or adjusted, so
-- that check.sql can hold its limits against what was admitted.  psql variable: duration, of the
-- round in seconds.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
SET TimeZone = 'UTC';
CREATE EXTENSION kavach;
CREATE SCHEMA fuzz;
GRANT USAGE ON SCHEMA fuzz TO PUBLIC;

DO $$
DECLARE
  role text;
BEGIN
  FOREACH role IN ARRAY '{fuzz_app,fuzz_reader,fuzz_admin,fuzz_nobody}'::text[] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
      EXECUTE format('CREATE ROLE %I LOGIN', role);
    END IF;
  END LOOP;
  PERFORM kavach_grant_role('fuzz_app', 'app'), kavach_grant_role('fuzz_reader', 'reader'),
          kavach_grant_role('fuzz_admin', 'admin');
END
$$;

-- ---- agents and budgets ----

SELECT count(kavach_create_agent('agt_' || n, 'u' || n % 6, CASE WHEN n % 5 > 0 THEN 't' || n % 3 END,
         permissions => CASE n % 5
           WHEN 0 THEN '[{"resource": "mcp:*:chat", "actions": ["run", "read"], "constraints": {"max_calls_per_hour": 20}},
                         {"resource": "**", "actions": ["*"], "constraints": {"max_calls_per_hour": 200}}]'
           WHEN 1 THEN '[{"resource": "**", "actions": ["*"],
                          "constraints": {"allowed_arg_patterns": ["*"], "ip_allowlist": ["10.0.0.0/8", "2001:db8::/32"],
                                          "time_window": {"start": "22:00", "end": "20:00"}}}, {"resource": "*", "actions": ["run"]}]'
           ELSE '[{"resource": "*", "actions": ["*"]}]' END::jsonb))
  FROM generate_series(1, 20) AS n;
SELECT count(kavach_create_policy(agent_id => 'agt_' || n, action => (ARRAY['warn', 'throttle', 'block', 'revoke'])[1 + n % 4],
         limits => jsonb_build_object((ARRAY['max_tokens_cost_per_hour', 'max_tokens_cost_total', 'max_calls_per_day'])[1 + n % 3], n * 200)))
  FROM generate_series(1, 20) AS n;
SELECT count(kavach_create_policy(each => each, limits => '{"max_tokens_cost_per_month": 5000, "max_calls_per_hour": 300}'))
  FROM unnest('{agent,user,tenant}'::text[]) AS each;

SELECT count(kavach_create_agent('agt_guarded_' || n, 'guarded_' || n % 2, 'guarded',
         permissions => '[{"resource": "*", "actions": ["*"]}]'))
  FROM generate_series(1, 4) AS n;
SELECT count(kavach_create_policy(agent_id => agent, user_id => "user", tenant_id => tenant, all_agents => coalesce(agent, "user", tenant) IS NULL,
         limits => limits, action => action))
  FROM (VALUES (NULL, NULL, 'guarded', '{"max_tokens_cost_per_hour": 90, "max_tokens_cost_total": 300}'::jsonb, 'block'),
               (NULL, 'guarded_1', NULL, '{"max_tokens_cost_per_month": 60, "max_calls_per_hour": 2}', 'throttle'),
               ('agt_guarded_2', NULL, NULL, '{"max_tokens_cost_per_day": 40, "max_calls_total": 5}', 'block'),
               (NULL, NULL, NULL, jsonb_build_object('max_calls_per_hour', 40 + 4 * :duration), 'throttle')) AS p (agent, "user", tenant, limits, action);

CREATE TABLE fuzz.guarded AS
SELECT policy_id FROM kavach.budget_policy WHERE scope = 'all' OR subject ~ 'guarded';

-- ---- a ledger ----

-- The instants at which the fuzzer likes to stop the clock, so that windows fill.
CREATE TABLE fuzz.instant AS
SELECT row_number() OVER () AS k, ts::timestamptz
  FROM unnest('{2026-01-31 23:59:59.999999,2026-02-01 00:00,2026-02-28 12:00,2026-03-10 09:30,2026-03-10 10:29,2026-12-31 23:59}'::text[]) AS ts;

DO $$
DECLARE
  clock text;
BEGIN
  FOR clock IN SELECT ts FROM fuzz.instant LOOP
    FOR n IN 1..40 LOOP
      PERFORM set_config('kavach.clock', clock, true),
              kavach_authorize('agt_' || 1 + n % 20, 'run', 'mcp:openai:chat', tokens_cost => n % 13, request_id => format('r%s of %s', n, clock)),
              kavach_record_usage('agt_' || 1 + n % 20, n % 7);
      COMMIT;
    END LOOP;
  END LOOP;
END
$$;

-- ---- helpers ----
-- With the owner's rights, since every role uses them, and whatever the session has set.

-- The n-th of them, round and round.
CREATE FUNCTION fuzz.agent(n bigint) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT (array_agg(agent_id))[1 + abs(n) % nullif(count(*), 0)]
    FROM (SELECT agent_id FROM kavach.agent WHERE agent_id !~ 'guarded'
           ORDER BY agent_id ~ '^agt_[0-9]+$' DESC, agent_id LIMIT 40) AS a
$$;
CREATE FUNCTION fuzz.policy(n bigint) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT (array_agg(policy_id))[1 + abs(n) % nullif(count(*), 0)]
    FROM (SELECT policy_id FROM kavach.budget_policy p WHERE NOT EXISTS (SELECT FROM fuzz.guarded g WHERE g.policy_id = p.policy_id)
           ORDER BY created_at, policy_id LIMIT 40) AS p
$$;
CREATE FUNCTION fuzz.permission(n bigint) RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT (array_agg(permission_id))[1 + abs(n) % nullif(count(*), 0)]
    FROM (SELECT permission_id FROM kavach.permission WHERE agent_id !~ 'guarded' ORDER BY permission_id LIMIT 40) AS p
$$;
CREATE FUNCTION fuzz.audit_id(n bigint) RETURNS uuid LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT (array_agg(id))[1 + abs(n) % nullif(count(*), 0)]
    FROM (SELECT id FROM kavach.audit_log WHERE agent_id !~ 'guarded' ORDER BY id DESC LIMIT 200) AS l
$$;
-- An authorization of that agent.
CREATE FUNCTION fuzz.audit_id_of(agent text, n bigint) RETURNS uuid LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT (array_agg(id))[1 + abs(n) % nullif(count(*), 0)]
    FROM (SELECT id FROM kavach.audit_log WHERE agent_id = agent AND kind = 'authorize' ORDER BY id DESC LIMIT 20) AS l
$$;
CREATE FUNCTION fuzz.instant(n bigint) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog SET TimeZone = 'UTC' SET DateStyle = 'ISO' AS $$
  SELECT replace(ts::text, '+00', 'Z') FROM fuzz.instant ORDER BY k OFFSET abs(n) % 6 LIMIT 1
$$;
-- So many bytes of a character, and what is left of another one.
CREATE FUNCTION fuzz.text(c text, bytes int) RETURNS text LANGUAGE sql SET search_path = pg_catalog AS $$
  SELECT repeat('x', bytes % greatest(octet_length(c), 1)) || repeat(c, bytes / greatest(octet_length(c), 1))
$$;
CREATE FUNCTION fuzz.deep(depth int) RETURNS jsonb LANGUAGE sql SET search_path = pg_catalog AS $$
  SELECT (repeat('{"a":[', depth) || '1' || repeat(']}', depth))::jsonb
$$;
CREATE FUNCTION fuzz.wide(width int) RETURNS jsonb LANGUAGE sql SET search_path = pg_catalog AS $$
  SELECT jsonb_object_agg('k' || n, 'v' || n) FROM generate_series(1, width) AS n
$$;

-- What an exception block caught: told to the log, where it is judged like any other error.
CREATE FUNCTION fuzz.caught(state text, message text, context text) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
  RAISE WARNING USING ERRCODE = state, MESSAGE = 'caught: ' || message, DETAIL = context;
END
$$;

-- All that a call can change, in one figure.
CREATE FUNCTION fuzz.world() RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
  SELECT md5(concat(
    (SELECT sum(hashtextextended(t::text, 0)) FROM kavach.agent AS t),
    (SELECT sum(hashtextextended(t::text, 1)) FROM kavach.permission AS t),
    (SELECT sum(hashtextextended(t::text, 2)) FROM kavach.budget_policy AS t),
    (SELECT sum(hashtextextended(t::text, 3)) FROM kavach.budget_limit AS t),
    (SELECT sum(hashtextextended(t::text, 4)) FROM kavach.budget_baseline AS t),
    (SELECT sum(hashtextextended(concat(id, tokens_cost), 5)) FROM kavach.audit_log),
    (SELECT coalesce(sum(pins + tokens_pending + calls_pending), 0) FROM kavach.counters)))
$$;

-- Of a call that fails: whether it has changed anything.  Nobody else may be there.
CREATE FUNCTION fuzz.alone(call text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  before text := fuzz.world();
  context text;
BEGIN
  EXECUTE call;
EXCEPTION WHEN OTHERS THEN
  GET STACKED DIAGNOSTICS context = PG_EXCEPTION_CONTEXT;
  PERFORM fuzz.caught(SQLSTATE, SQLERRM, context);
  IF fuzz.world() <> before THEN
    RAISE EXCEPTION 'a call that failed has changed something' USING ERRCODE = 'internal_error';
  END IF;
END
$$;
