-- Replays a trace of real calls. Agents, budgets and calls come as CSV; the calls
-- are dealt to the agents one after another, in the order of the file.
\set QUIET on
CREATE SCHEMA demo;

CREATE TABLE demo.agent (agent_id text, user_id text, tenant_id text);
CREATE TABLE demo.budget (scope text, subject text, "limit" text, amount bigint, action text);
CREATE TABLE demo.call (
  n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  ts text,                -- seven fractional digits, one more than a timestamptz holds
  context bigint,
  generated bigint
);
CREATE TABLE demo.expected (user_id text, calls bigint, denied bigint, tokens_cost bigint);

-- Each call at its own time: authorized with the tokens of its context and, if
-- admitted, settled with those it generated as well. Digits past the microsecond
-- are cut off, since rounding could move a call into the next hour.
CREATE PROCEDURE demo.replay() LANGUAGE plpgsql AS $$
DECLARE
  call record;
  answer record;
  agents text[] := (SELECT array_agg(agent_id ORDER BY agent_id) FROM demo.agent);
  agent text;
  total bigint := (SELECT count(*) FROM demo.call);
BEGIN
  PERFORM kavach_create_agent(agent_id, user_id, tenant_id,
            permissions => '[{"resource": "llm:*", "actions": ["execute"]}]')
     FROM demo.agent;
  PERFORM kavach_create_policy(
            agent_id => CASE scope WHEN 'agent' THEN subject END,
            user_id => CASE scope WHEN 'user' THEN subject END,
            limits => jsonb_build_object("limit", amount), action => action)
     FROM demo.budget;
  COMMIT;
  FOR call IN SELECT * FROM demo.call ORDER BY n LOOP
    agent := agents[(call.n - 1) % cardinality(agents) + 1];
    PERFORM set_config('kavach.clock', left(call.ts, 26) || 'Z', false);
    SELECT * INTO answer
      FROM kavach_authorize(agent, 'execute', 'llm:chat', tokens_cost => call.context);
    COMMIT;
    IF answer.allowed THEN
      PERFORM kavach_record_usage(agent, call.context + call.generated, answer.audit_id);
      COMMIT;
    END IF;
    IF call.n % 100 = 0 OR call.n = total THEN
      RAISE NOTICE 'progress % of %', call.n, total;
    END IF;
  END LOOP;
END
$$;

\echo '--- A trace of real calls, replayed: twelve agents of four users ---------------'
\echo
