-- counter_rows.sql: what is commonly written instead of kavach, in PL/pgSQL: a
-- row of counters for each agent, user, tenant and for all, that every call
-- updates.  It is kind to itself: the four windows of a scope share a row, rows
-- are locked in one order, widest last, and a retry or a constraint is unknown.
CREATE TABLE bench.usage (
  scope text,
  subject text,
  hour_start timestamptz NOT NULL,
  hour_tokens bigint NOT NULL,
  day_start timestamptz NOT NULL,
  day_tokens bigint NOT NULL,
  month_start timestamptz NOT NULL,
  month_tokens bigint NOT NULL,
  total_tokens bigint NOT NULL,
  PRIMARY KEY (scope, subject)
) WITH (fillfactor = 50);

INSERT INTO bench.usage
SELECT scope, subject, now(), 0, now(), 0, now(), 0, 0
  FROM (SELECT 'agent', agent_id FROM kavach.agent
         UNION SELECT 'user', user_id FROM kavach.agent
         UNION SELECT 'tenant', tenant_id FROM kavach.agent
         UNION SELECT 'all', '') s (scope, subject);

CREATE TABLE bench.budget (
  scope text,
  subject text,                 -- NULL: each
  period text,
  amount bigint NOT NULL,
  UNIQUE NULLS NOT DISTINCT (scope, subject, period)
);

INSERT INTO bench.budget VALUES
  ('agent', NULL, 'hour', 100000000000000),
  ('user', NULL, 'day', 100000000000000),
  ('tenant', 'tenant_1', 'month', 100000000000000),
  ('all', '', 'total', 1000000000000000);
ANALYZE bench.usage, bench.budget;

-- Adds to a row of counters and tells what its tightest budget has left.
CREATE FUNCTION bench.charge(scope text, subject text, tokens bigint, ts timestamptz)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
  u bench.usage;
  room bigint;
BEGIN
  UPDATE bench.usage c
     SET hour_tokens = tokens + CASE WHEN hour_start = date_trunc('hour', ts) THEN hour_tokens ELSE 0 END,
         hour_start = date_trunc('hour', ts),
         day_tokens = tokens + CASE WHEN day_start = date_trunc('day', ts) THEN day_tokens ELSE 0 END,
         day_start = date_trunc('day', ts),
         month_tokens = tokens + CASE WHEN month_start = date_trunc('month', ts) THEN month_tokens ELSE 0 END,
         month_start = date_trunc('month', ts),
         total_tokens = tokens + total_tokens
   WHERE c.scope = charge.scope AND c.subject = charge.subject
  RETURNING * INTO u;
  SELECT min(amount - CASE period WHEN 'hour' THEN u.hour_tokens WHEN 'day' THEN u.day_tokens
                                  WHEN 'month' THEN u.month_tokens ELSE u.total_tokens END)
    INTO room
    FROM bench.budget b
   WHERE b.scope = charge.scope AND (b.subject = charge.subject OR b.subject IS NULL);
  RETURN room;
END
$$;

CREATE FUNCTION bench.authorize(agent_id text, action text, resource text, tokens_cost bigint,
  OUT allowed boolean, OUT code text, OUT audit_id uuid, OUT tokens_remaining bigint)
LANGUAGE plpgsql
AS $$
DECLARE
  a kavach.agent;
  permission bigint;
  ts timestamptz := clock_timestamp();
BEGIN
  audit_id := bench.uuid7(ts);
  SELECT * INTO a FROM kavach.agent c WHERE c.agent_id = authorize.agent_id;
  SELECT permission_id INTO permission
    FROM kavach.permission p
   WHERE p.agent_id = authorize.agent_id AND authorize.action = ANY (p.actions)
     AND authorize.resource LIKE replace(p.resource, '*', '%')
   ORDER BY permission_id LIMIT 1;
  IF a.agent_id IS NULL OR a.status <> 'active' OR a.expires_at <= ts THEN
    code := 'agent_not_active';
  ELSIF permission IS NULL THEN
    code := 'permission_denied';
  ELSE
    tokens_remaining := least(
      bench.charge('agent', a.agent_id, tokens_cost, ts),
      bench.charge('user', a.user_id, tokens_cost, ts),
      bench.charge('tenant', a.tenant_id, tokens_cost, ts),
      bench.charge('all', '', tokens_cost, ts));
    code := 'allowed';
    IF tokens_remaining < 0 THEN
      code := 'budget_exceeded';
      PERFORM bench.charge('agent', a.agent_id, -tokens_cost, ts),
              bench.charge('user', a.user_id, -tokens_cost, ts),
              bench.charge('tenant', a.tenant_id, -tokens_cost, ts),
              bench.charge('all', '', -tokens_cost, ts);
    END IF;
  END IF;
  allowed := code = 'allowed';
  INSERT INTO bench.audit_log
    (id, ts, kind, agent_id, user_id, tenant_id, action, resource, result, code,
     permission_id, tokens_requested, tokens_cost)
  VALUES
    (audit_id, ts, 'authorize', agent_id, a.user_id, a.tenant_id, action, resource,
     CASE WHEN allowed THEN 'allowed' ELSE 'denied' END, code,
     permission, tokens_cost, CASE WHEN allowed THEN tokens_cost ELSE 0 END);
END
$$;
