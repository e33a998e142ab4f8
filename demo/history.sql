-- Thirty days of sample history, June 2026, made through kavach.clock.
--
-- Two tenants, four users and eight agents; busy weekdays, quiet weekends and
-- nights, some growth. Each call is authorized with an estimate and, if admitted,
-- settled with what it "really" spent. The same history comes out every time.
\set QUIET on
\pset footer off
CREATE SCHEMA demo;

CREATE TABLE demo.agent (
  agent_id text,
  user_id text,
  tenant_id text,
  share int,              -- of a hundred calls
  estimate int            -- tokens a call, on average
);
INSERT INTO demo.agent VALUES
  ('agt_support',    'maya',  'acme',   30,  900),
  ('agt_triage',     'maya',  'acme',   14,  400),
  ('agt_reviewer',   'jonas', 'acme',   16, 2600),
  ('agt_tester',     'jonas', 'acme',    8, 1500),
  ('agt_researcher', 'lena',  'globex', 12, 3800),
  ('agt_crawler',    'lena',  'globex', 10, 2200),
  ('agt_invoices',   'omar',  'globex',  7, 1100),
  ('agt_assistant',  'omar',  'globex',  3,  700);

SELECT count(kavach_create_agent(agent_id, user_id, tenant_id,
               permissions => '[{"resource": "mcp:**", "actions": ["execute"]}]'))
  FROM demo.agent \g /dev/null
SELECT kavach_create_policy(agent_id => 'agt_crawler', action => 'throttle',
                            limits => '{"max_tokens_cost_per_day": 30000}'),
       kavach_create_policy(user_id => 'jonas',
                            limits => '{"max_tokens_cost_per_month": 1800000}'),
       kavach_create_policy(each => 'tenant', action => 'warn',
                            limits => '{"max_tokens_cost_per_day": 150000}')
\g /dev/null

-- How busy a day is, and an hour of it.
CREATE FUNCTION demo.calls_on(day date) RETURNS int
RETURN (110 + extract(day FROM day) * 2.5) * (0.8 + random() * 0.4)
       * CASE WHEN extract(isodow FROM day) > 5 THEN 0.3 ELSE 1 END;

CREATE FUNCTION demo.moment_of(day date) RETURNS timestamptz
RETURN date_trunc('second', day::timestamp
         + interval '1 hour' * least(greatest(13 + 3 * sqrt(-2 * ln(1 - random())) * cos(2 * pi() * random()), 0), 23.99))
       AT TIME ZONE 'UTC';

CREATE TABLE demo.call (ts timestamptz, agent_id text, estimate bigint, spent bigint);
SELECT setseed(0.42) \g /dev/null
INSERT INTO demo.call
SELECT c.ts, a.agent_id, a.estimate * 1.5, a.estimate * c.size
  FROM (SELECT demo.moment_of(day::date) AS ts, 100 * random() AS pick, 0.5 + random() AS size
          FROM generate_series(date '2026-06-01', '2026-06-30', '1 day') AS day,
               generate_series(1, demo.calls_on(day::date))) AS c
  JOIN (SELECT *, sum(share) OVER shares AS upto FROM demo.agent WINDOW shares AS (ORDER BY agent_id)) AS a
    ON c.pick >= a.upto - a.share AND c.pick < a.upto;

-- A decision is committed before the model is called; so it is here.
CREATE PROCEDURE demo.make_history() LANGUAGE plpgsql AS $$
DECLARE
  call record;
  answer record;
  total bigint := (SELECT count(*) FROM demo.call);
BEGIN
  FOR call IN SELECT *, row_number() OVER (ORDER BY ts) AS n FROM demo.call ORDER BY ts LOOP
    PERFORM set_config('kavach.clock', call.ts::text, false);
    SELECT * INTO answer
      FROM kavach_authorize(call.agent_id, 'execute', 'mcp:openai:chat', tokens_cost => call.estimate);
    COMMIT;
    IF answer.allowed THEN
      PERFORM set_config('kavach.clock', (call.ts + interval '4 seconds')::text, false);
      PERFORM kavach_record_usage(call.agent_id, call.spent, answer.audit_id);
      COMMIT;
    END IF;
    IF call.n % 50 = 0 OR call.n = total THEN
      RAISE NOTICE 'progress % of %', call.n, total;
    END IF;
  END LOOP;
END
$$;

\echo '--- Thirty days of sample history: eight agents of four users ------------------'
\echo
