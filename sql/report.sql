-- report.sql
--   Who spent what: reports over the ledger.
--
-- Plain SQL functions with the caller's rights over views with the owner's:
-- the planner inlines them, so that they stream, prune months, and take the
-- caller's own WHERE and LIMIT.  So no SET, STRICT or SECURITY DEFINER here,
-- and bounds as ts >= lower AND ts < upper: until is exclusive everywhere.

CREATE FUNCTION kavach.audit_limit(max_rows int, actions text[], result text)
RETURNS bigint
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_audit_limit';

COMMENT ON FUNCTION kavach.audit_limit(int, text[], text) IS
  'The limit of kavach_query_audit, max_rows, once its arguments are checked: a search that comes to look at no row must refuse them, too. Errors: 22004 a NULL among the actions; 22023 an unknown result, no action at all.';

CREATE FUNCTION @extschema@.kavach_query_audit(
  agent_id  text DEFAULT NULL,
  user_id   text DEFAULT NULL,
  tenant_id text DEFAULT NULL,
  since     timestamptz DEFAULT NULL,
  until     timestamptz DEFAULT NULL,
  actions   text[] DEFAULT NULL,
  result    text DEFAULT NULL,
  max_rows  int DEFAULT NULL,
  before    uuid DEFAULT NULL)
RETURNS SETOF kavach.ledger
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT l.*
    FROM kavach.ledger l
   WHERE l.ts >= kavach.range_start(kavach_query_audit.since, kavach_query_audit.until)
     AND l.ts < coalesce(kavach_query_audit.until, 'infinity')
     AND l.ts < coalesce(kavach.uuid7_ts(kavach_query_audit.before) + interval '1 ms', 'infinity')
     AND (kavach_query_audit.before IS NULL OR l.id < kavach_query_audit.before)
     AND (kavach_query_audit.agent_id IS NULL OR l.agent_id = kavach_query_audit.agent_id)
     AND (kavach_query_audit.user_id IS NULL OR l.user_id = kavach_query_audit.user_id)
     AND (kavach_query_audit.tenant_id IS NULL OR l.tenant_id = kavach_query_audit.tenant_id)
     AND (kavach_query_audit.actions IS NULL OR l.action = ANY (kavach_query_audit.actions))
     AND (kavach_query_audit.result IS NULL OR l.result = kavach_query_audit.result)
   ORDER BY l.id DESC
   LIMIT kavach.audit_limit(kavach_query_audit.max_rows, kavach_query_audit.actions, kavach_query_audit.result);
END;

COMMENT ON FUNCTION @extschema@.kavach_query_audit(text, text, text, timestamptz, timestamptz, text[], text, int, uuid) IS
'Ledger rows, newest first. Every argument narrows, NULL does not: agent_id, user_id, tenant_id; since (inclusive) and until (exclusive);
actions: any of these; result: allowed, denied or rate_limited; max_rows: at most so many; before: rows older than this id, to page.
Errors: 22004 a NULL among the actions; 22023 where since is after until, for an unknown result and for an empty list of actions; 2201W negative max_rows.';

CREATE FUNCTION @extschema@.kavach_unsettled(
  agent_id text,
  until    timestamptz DEFAULT NULL)
RETURNS TABLE (audit_id uuid, ts timestamptz, action text, resource text, tokens_cost bigint, request_id text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
  PERFORM kavach.check_id(kavach_unsettled.agent_id, 'agent_id');
  RETURN QUERY
    SELECT u.id, u.ts, u.action, u.resource, u.tokens_cost, u.request_id
      FROM kavach.unsettled u
     WHERE u.agent_id = kavach_unsettled.agent_id AND u.ts < coalesce(kavach_unsettled.until, 'infinity')
     ORDER BY u.id;
  IF NOT FOUND AND NOT EXISTS (SELECT FROM kavach.agent a WHERE a.agent_id = kavach_unsettled.agent_id) THEN
    RAISE EXCEPTION 'agent "%" does not exist', kavach_unsettled.agent_id
      USING ERRCODE = 'undefined_object',
            DETAIL = 'Nor has it left anything open.';
  END IF;
END
$$;

COMMENT ON FUNCTION @extschema@.kavach_unsettled(text, timestamptz) IS
'What an agent has left open: its admitted calls with a cost that nobody has settled yet, oldest first; of a dropped one, too. Settle them with kavach_record_usage(agent_id, tokens, audit_id => audit_id), 0 tokens where the model was not called.
until: only calls made before; NULL: all.
Errors: 22004, 22023, 22001 bad input; 42704 unknown agent that has left nothing open.';

-- What a ledger row counts as is said here alone: reports sum these columns.  What
-- is rare is asked first, since that is done for every row.

CREATE VIEW kavach.usage AS
SELECT a.ts, (a.ts AT TIME ZONE 'UTC')::date AS day, a.agent_id, a.user_id, a.tenant_id,
       CASE WHEN a.kind = 'authorize' THEN 1 ELSE 0 END AS calls,
       CASE WHEN a.result <> 'allowed' AND a.kind = 'authorize' THEN 1 ELSE 0 END AS denied,
       CASE WHEN a.tokens_requested IS NULL AND a.kind = 'authorize' AND a.result = 'allowed' THEN 1 ELSE 0 END AS calls_without_cost,
       coalesce(a.tokens_cost, 0) AS tokens_cost
  FROM kavach.audit_log a;

COMMENT ON VIEW kavach.usage IS 'What each ledger row counts as: every report sums these columns.';
COMMENT ON COLUMN kavach.usage.ts IS 'Clock time of the call.';
COMMENT ON COLUMN kavach.usage.day IS 'Its UTC day.';
COMMENT ON COLUMN kavach.usage.agent_id IS 'Who called.';
COMMENT ON COLUMN kavach.usage.user_id IS 'The agent''s owner at that time; NULL for an unknown agent.';
COMMENT ON COLUMN kavach.usage.tenant_id IS 'The agent''s tenant at that time.';
COMMENT ON COLUMN kavach.usage.calls IS '1 for an authorize decision, else 0.';
COMMENT ON COLUMN kavach.usage.denied IS '1 for one that refused, else 0.';
COMMENT ON COLUMN kavach.usage.calls_without_cost IS '1 for one that admitted a call which gave no cost, else 0.';
COMMENT ON COLUMN kavach.usage.tokens_cost IS 'What the row charges; 0 where it gave no cost.';

CREATE VIEW kavach.usage_by_agent AS
SELECT agent_id,
       sum(calls) AS calls, sum(denied) AS denied, sum(calls_without_cost) AS calls_without_cost, sum(tokens_cost) AS tokens_cost
  FROM kavach.usage
 GROUP BY agent_id;

COMMENT ON VIEW kavach.usage_by_agent IS 'Usage of every agent, over all time. For a range use kavach_cost_by_agent.';
COMMENT ON COLUMN kavach.usage_by_agent.agent_id IS 'The agent.';

CREATE VIEW kavach.usage_by_user AS
SELECT user_id,
       sum(calls) AS calls, sum(denied) AS denied, sum(calls_without_cost) AS calls_without_cost, sum(tokens_cost) AS tokens_cost
  FROM kavach.usage
 GROUP BY user_id;

COMMENT ON VIEW kavach.usage_by_user IS 'Usage of every user, over all time. For a range use kavach_cost_by_user.';
COMMENT ON COLUMN kavach.usage_by_user.user_id IS 'The user; NULL: refused calls of unknown agents.';

CREATE VIEW kavach.usage_by_day AS
SELECT day,
       sum(calls) AS calls, sum(denied) AS denied, sum(calls_without_cost) AS calls_without_cost, sum(tokens_cost) AS tokens_cost
  FROM kavach.usage
 GROUP BY day;

COMMENT ON VIEW kavach.usage_by_day IS 'Usage of every UTC day that has ledger rows. For a range or one agent use kavach_cost_by_day.';
COMMENT ON COLUMN kavach.usage_by_day.day IS 'The UTC day.';

DO $$
DECLARE
  view text;
BEGIN
  FOREACH view IN ARRAY ARRAY['usage_by_agent', 'usage_by_user', 'usage_by_day'] LOOP
    EXECUTE format('COMMENT ON COLUMN kavach.%I.calls IS %L', view, 'Authorize decisions.');
    EXECUTE format('COMMENT ON COLUMN kavach.%I.denied IS %L', view, 'Those refused.');
    EXECUTE format('COMMENT ON COLUMN kavach.%I.calls_without_cost IS %L', view, 'Those admitted that gave no cost.');
    EXECUTE format('COMMENT ON COLUMN kavach.%I.tokens_cost IS %L', view, 'sum(tokens_cost) over the ledger: the bill.');
  END LOOP;
END
$$;

CREATE FUNCTION @extschema@.kavach_cost_by_agent(
  since timestamptz,
  until timestamptz)
RETURNS TABLE (agent_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT u.agent_id, sum(u.calls), sum(u.denied), sum(u.calls_without_cost), sum(u.tokens_cost)
    FROM kavach.usage u
   WHERE u.ts >= kavach.range_start(kavach_cost_by_agent.since, kavach_cost_by_agent.until)
     AND u.ts < coalesce(kavach_cost_by_agent.until, 'infinity')
   GROUP BY u.agent_id;
END;

COMMENT ON FUNCTION @extschema@.kavach_cost_by_agent(timestamptz, timestamptz) IS
'Usage by agent from since (inclusive) to until (exclusive); NULL for no bound.
calls: authorize decisions; denied: those refused; calls_without_cost: those admitted that gave no cost; tokens_cost: the sum over the ledger.
Errors: 22023 where since is after until.';

CREATE FUNCTION @extschema@.kavach_cost_by_user(
  since timestamptz,
  until timestamptz)
RETURNS TABLE (user_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT u.user_id, sum(u.calls), sum(u.denied), sum(u.calls_without_cost), sum(u.tokens_cost)
    FROM kavach.usage u
   WHERE u.ts >= kavach.range_start(kavach_cost_by_user.since, kavach_cost_by_user.until)
     AND u.ts < coalesce(kavach_cost_by_user.until, 'infinity')
   GROUP BY u.user_id;
END;

COMMENT ON FUNCTION @extschema@.kavach_cost_by_user(timestamptz, timestamptz) IS
'Usage by user, one row each, from since (inclusive) to until (exclusive); NULL for no bound. The columns are those of kavach_cost_by_agent; NULL: refused calls of unknown agents.
Errors: 22023 where since is after until.';

CREATE FUNCTION @extschema@.kavach_cost_by_day(
  agent_id text,
  since    timestamptz,
  until    timestamptz)
RETURNS TABLE (day date, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT u.day, sum(u.calls), sum(u.denied), sum(u.calls_without_cost), sum(u.tokens_cost)
    FROM kavach.usage u
   WHERE u.ts >= kavach.range_start(kavach_cost_by_day.since, kavach_cost_by_day.until)
     AND u.ts < coalesce(kavach_cost_by_day.until, 'infinity')
     AND (kavach_cost_by_day.agent_id IS NULL OR u.agent_id = kavach_cost_by_day.agent_id)
   GROUP BY u.day;
END;

COMMENT ON FUNCTION @extschema@.kavach_cost_by_day(text, timestamptz, timestamptz) IS
'Usage by UTC day, of one agent or of all (NULL), from since (inclusive) to until (exclusive); NULL for no bound. Days without ledger rows are absent. The other columns are those of kavach_cost_by_agent.
Errors: 22023 where since is after until.';

CREATE FUNCTION @extschema@.kavach_billing_report(year int, month int)
RETURNS TABLE (tenant_id text, user_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT u.tenant_id, u.user_id, sum(u.calls), sum(u.denied), sum(u.calls_without_cost), sum(u.tokens_cost)
    FROM kavach.usage u
   WHERE u.ts >= kavach.month_start(kavach_billing_report.year, kavach_billing_report.month)
     AND u.ts < kavach.month_end(kavach_billing_report.year, kavach_billing_report.month)
   GROUP BY u.tenant_id, u.user_id;
END;

COMMENT ON FUNCTION @extschema@.kavach_billing_report(int, int) IS
'The bill of a UTC month: usage by tenant and user. The other columns are those of kavach_cost_by_agent; NULL, NULL: refused calls of unknown agents.
Errors: 22004, 22023 no such month.';

-- What applications show in their own pages: as the tables, with the owner's rights.

CREATE VIEW kavach.agents AS
SELECT a.agent_id, a.user_id, a.tenant_id, a.name, a.status, a.status_reason, a.status_changed_at, a.expires_at, a.metadata, a.created_at
  FROM kavach.agent a;

COMMENT ON VIEW kavach.agents IS 'The agents, for readers.';

CREATE VIEW kavach.permissions AS
SELECT p.permission_id, p.agent_id, p.resource, p.actions, p.constraints, p.created_at
  FROM kavach.permission p;

COMMENT ON VIEW kavach.permissions IS 'What agents may do, for readers.';

CREATE VIEW kavach.policies AS
SELECT p.policy_id, p.scope, p.subject, p.each, p.action, p.enabled, p.created_at,
       (SELECT jsonb_object_agg(k.key, l.amount)
          FROM kavach.budget_limit l JOIN kavach.limit_keys() k USING (measure, period)
         WHERE l.policy_id = p.policy_id) AS limits
  FROM kavach.budget_policy p;

COMMENT ON VIEW kavach.policies IS 'The budgets with their limits, for readers. How they stand is in kavach.budget_status.';

DO $$
DECLARE
  c record;
BEGIN
  FOR c IN
    SELECT v.view, a.attname, coalesce(col_description(v.source, b.attnum), 'Its limits, as kavach_create_policy takes them.') AS text
      FROM (VALUES ('kavach.agents'::regclass, 'kavach.agent'::regclass), ('kavach.permissions', 'kavach.permission'),
                   ('kavach.policies', 'kavach.budget_policy')) AS v (view, source)
      JOIN pg_attribute a ON a.attrelid = v.view AND a.attnum > 0
      LEFT JOIN pg_attribute b ON b.attrelid = v.source AND b.attname = a.attname
  LOOP
    EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', c.view, c.attname, c.text);
  END LOOP;
END
$$;
