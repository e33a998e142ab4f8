-- world.sql: the agents and budgets of a round of the soak test.
--
-- psql variables: seed, and scale, by which the limits are multiplied.  Users and tenants
-- have the same ids, so that scopes which share a counter would be seen.
\set ON_ERROR_STOP on
SET client_min_messages = warning;
CREATE EXTENSION kavach;
CREATE SCHEMA soak;
SELECT setseed(:seed % 100000 / 100000.0);

SELECT count(kavach_create_agent('agt_' || n, 'x' || n % 10, CASE WHEN n % 8 > 0 THEN 'x' || n % 3 END,
         permissions => CASE n % 5
           WHEN 0 THEN '[{"resource": "tool:*", "actions": ["run"], "constraints": {"max_calls_per_hour": 9}},
                         {"resource": "**", "actions": ["*"], "constraints": {"max_calls_per_hour": 14}}]'
           ELSE '[{"resource": "**", "actions": ["*"]}]' END::jsonb))
  FROM generate_series(0, 39) AS n;

-- A kind of limit by its number, about what is asked for in a window of it; which policies there
-- are and how tight they are is left to chance, so that every kind is the one reached some time.
CREATE FUNCTION soak.limits(kind int, tokens float8) RETURNS jsonb
LANGUAGE sql
BEGIN ATOMIC
  SELECT jsonb_build_object(
    format('max_%s%s', CASE kind / 4 % 2 WHEN 0 THEN 'tokens_cost' ELSE 'calls' END,
           (ARRAY['_per_hour', '_per_day', '_per_month', '_total'])[1 + kind % 4]),
    ceil(tokens * (ARRAY[1, 1.7, 2.5, 7])[1 + kind % 4] / CASE kind / 4 % 2 WHEN 0 THEN 1 ELSE 5 END * (0.2 + random())));
END;

SELECT count(kavach_create_policy(agent_id => 'agt_' || n, limits => soak.limits(n, :scale * 20),
         action => CASE WHEN n % 9 = 0 THEN 'revoke' WHEN n % 4 = 0 THEN 'throttle' ELSE 'block' END))
  FROM generate_series(0, 39) AS n WHERE random() < 0.4;
SELECT count(kavach_create_policy(user_id => 'x' || n, limits => soak.limits(n + k, :scale * 60)))
  FROM generate_series(0, 9) AS n, generate_series(0, 7) AS k WHERE random() < 0.1;
SELECT count(kavach_create_policy(tenant_id => 'x' || n, limits => soak.limits(k, :scale * 180)))
  FROM generate_series(0, 2) AS n, generate_series(0, 7) AS k WHERE random() < 0.2;
SELECT count(kavach_create_policy(all_agents => true, limits => soak.limits(k, :scale * 600)))
  FROM generate_series(0, 7) AS k WHERE random() < 0.2;
SELECT count(kavach_create_policy(each => 'agent', limits => soak.limits(k, :scale * 25)))
  FROM generate_series(0, 7) AS k WHERE random() < 0.2;
SELECT count(kavach_create_policy(each => 'user', limits => soak.limits(k, :scale * 80)))
  FROM generate_series(0, 7) AS k WHERE random() < 0.2;
SELECT count(kavach_create_policy(each => 'tenant', limits => soak.limits(k, :scale * 220)))
  FROM generate_series(0, 7) AS k WHERE random() < 0.2;
-- A warning hides no refusal.
SELECT kavach_create_policy(each => 'user', action => 'warn',
         limits => '{"max_calls_per_hour": 1, "max_tokens_cost_total": 1}') IS NOT NULL;

CREATE FUNCTION soak.call_and_fail(agent text) RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
  PERFORM kavach_authorize(agent, 'run', 'tool:x', tokens_cost => 2);
  BEGIN
    PERFORM kavach_authorize(agent, 'run', 'tool:x', tokens_cost => 1);
  EXCEPTION WHEN division_by_zero THEN
    NULL;
  END;
  RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
  RETURN true;
END
$$;

-- What the clients were told (client.c).
CREATE TABLE soak.log (
  state    text,
  client   int,
  txn      bigint,
  id       uuid,
  agent    text,    -- of an error: its message
  kind     text,
  allowed  boolean,
  code     text,    -- of an error: its SQLSTATE
  tokens   bigint,
  cost     bigint,
  alone    boolean,
  sent     float8,
  received float8
);
