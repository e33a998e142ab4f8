-- report.sql
--   Who spent what: reports over the ledger.
--
-- Plain SQL functions with the caller's rights over views with the owner's:
-- the planner inlines them, so that they stream, prune months, and take the
-- caller's own WHERE and LIMIT.  So no SET, STRICT or SECURITY DEFINER here,
-- and bounds as ts >= lower AND ts < upper: until is exclusive everywhere.
--
-- Figures come from what closed batches add up to (batch.sql), and from the rows that
-- are not in there: kavach.usage_part has both, kavach.usage_between a range of it, and
-- the reports are sums over that.

CREATE FUNCTION kavach.audit_limit(max_rows int, actions text[], result text)
RETURNS bigint
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_audit_limit';

COMMENT ON FUNCTION kavach.audit_limit(int, text[], text) IS
  'The limit of kavach_query_audit, max_rows, once its arguments are checked: a search that comes to look at no row must refuse them, too. Errors: 22004 a NULL among the actions; 22023 an unknown result, no action at all.';

-- The first page of somebody's rows.  Those of an agent are found by (agent_id, ts).  Of a
-- user or tenant, the sums of days tell on which there are any, and of which agents;
-- whose are much of what there is are found sooner by passing over it.  That is decided
-- on the way, from the newest day on, so that it is no plain SQL; a page is small, and
-- need not stream.

CREATE FUNCTION kavach.is_page(agent_id text, user_id text, tenant_id text, max_rows int)
RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN coalesce(max_rows <= 1000, false) AND (agent_id IS NOT NULL OR user_id IS NOT NULL OR tenant_id IS NOT NULL);

COMMENT ON FUNCTION kavach.is_page(text, text, text, int) IS
  'Whether kavach_query_audit leaves a search to kavach.audit_page: it wants few rows, and of somebody.';

CREATE FUNCTION kavach.audit_page(
  agent_id  text,
  user_id   text,
  tenant_id text,
  since     timestamptz,
  until     timestamptz,
  actions   text[],
  result    text,
  max_rows  int,
  before    uuid)
RETURNS SETOF kavach.ledger
LANGUAGE plpgsql STABLE PARALLEL SAFE SECURITY DEFINER ROWS 100
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  upper timestamptz := least(until, kavach.uuid7_ts(before) + interval '1 ms', 'infinity');
  lower timestamptz := kavach.kept_since(kavach.range_start(since, until), upper);
  wanted int := max_rows;
  found_rows int;
  tail record;
  tail_days date[];
  tail_agents text[];
  sums int := 16;  -- of how many sums of days the rows are looked for at once
  first_day date;
  last_day date := (upper AT TIME ZONE 'UTC')::date + 1;  -- what is from here on is found already
  share record;
BEGIN
  IF audit_page.agent_id IS NOT NULL THEN
    RETURN QUERY
      SELECT l.*
        FROM kavach.audit_log l
       WHERE l.agent_id = audit_page.agent_id AND l.ts >= lower AND l.ts < upper
         AND (audit_page.before IS NULL OR l.id < audit_page.before)
         AND (audit_page.user_id IS NULL OR l.user_id = audit_page.user_id)
         AND (audit_page.tenant_id IS NULL OR l.tenant_id = audit_page.tenant_id)
         AND (audit_page.actions IS NULL OR l.action = ANY (audit_page.actions))
         AND (audit_page.result IS NULL OR l.result = audit_page.result)
       ORDER BY l.ts DESC, l.id DESC
       LIMIT wanted;
    RETURN;
  END IF;

  SELECT coalesce(max(t.high), -1) AS high, coalesce(max(t.open), '{}') AS open INTO tail FROM kavach.tail t;
  SELECT array_agg(t.day), array_agg(t.agent_id) INTO tail_days, tail_agents
    FROM (SELECT DISTINCT (l.ts AT TIME ZONE 'UTC')::date AS day, l.agent_id
            FROM kavach.audit_log l
           WHERE (l.batch > tail.high AND l.batch <= 9223372036854775807 OR l.batch = ANY (tail.open))
             AND l.ts >= lower AND l.ts < upper
             AND (audit_page.user_id IS NULL OR l.user_id = audit_page.user_id)
             AND (audit_page.tenant_id IS NULL OR l.tenant_id = audit_page.tenant_id)) t;

  WHILE wanted > 0 AND last_day > '-infinity' LOOP
    SELECT d.day INTO first_day
      FROM kavach.usage_daily d
     WHERE d.day >= (lower AT TIME ZONE 'UTC')::date AND d.day < last_day
       AND (audit_page.user_id IS NULL OR d.user_id = audit_page.user_id)
       AND (audit_page.tenant_id IS NULL OR d.tenant_id = audit_page.tenant_id)
     ORDER BY d.day DESC
    OFFSET sums - 1 LIMIT 1;
    first_day := coalesce(first_day, '-infinity');
    lower := greatest(kavach.range_start(since, until), first_day::timestamp AT TIME ZONE 'UTC');
    upper := least(upper, last_day::timestamp AT TIME ZONE 'UTC');

    SELECT s.calls, s.is_unknown, CASE WHEN s.calls > 1000 THEN
             (SELECT sum(d.calls) FROM kavach.usage_daily d WHERE d.day >= first_day AND d.day < last_day) END AS all_calls
      INTO share
      FROM (SELECT sum(d.calls) AS calls, coalesce(bool_or(d.agent_id IS NULL), false) AS is_unknown
              FROM kavach.usage_daily d
             WHERE d.day >= greatest(first_day, (lower AT TIME ZONE 'UTC')::date) AND d.day < last_day
               AND (audit_page.user_id IS NULL OR d.user_id = audit_page.user_id)
               AND (audit_page.tenant_id IS NULL OR d.tenant_id = audit_page.tenant_id)) s;

    -- how many rows there are to pass over until the page is full, against all of theirs; with a filter it may never be
    IF share.is_unknown OR share.all_calls < 4 * share.calls
       OR (audit_page.actions IS NULL AND audit_page.result IS NULL AND share.all_calls * wanted < share.calls * share.calls) THEN
      RETURN QUERY
        SELECT l.*
          FROM kavach.audit_log l
         WHERE l.ts >= lower AND l.ts < upper
           AND (audit_page.before IS NULL OR l.id < audit_page.before)
           AND (audit_page.user_id IS NULL OR l.user_id = audit_page.user_id)
           AND (audit_page.tenant_id IS NULL OR l.tenant_id = audit_page.tenant_id)
           AND (audit_page.actions IS NULL OR l.action = ANY (audit_page.actions))
           AND (audit_page.result IS NULL OR l.result = audit_page.result)
         ORDER BY l.id DESC
         LIMIT wanted;
    ELSE
      RETURN QUERY
        SELECT l.*
          FROM (SELECT d.day, d.agent_id
                  FROM kavach.usage_daily d
                 WHERE d.day >= greatest(first_day, (lower AT TIME ZONE 'UTC')::date) AND d.day < last_day
                   AND (audit_page.user_id IS NULL OR d.user_id = audit_page.user_id)
                   AND (audit_page.tenant_id IS NULL OR d.tenant_id = audit_page.tenant_id)
                 UNION
                SELECT t.day, t.agent_id
                  FROM unnest(tail_days, tail_agents) AS t (day, agent_id)
                 WHERE t.day >= first_day AND t.day < last_day) d
         CROSS JOIN LATERAL
               (SELECT a.*
                  FROM kavach.audit_log a
                 WHERE a.agent_id = d.agent_id AND a.ts >= lower AND a.ts < upper
                   AND a.ts >= d.day::timestamp AT TIME ZONE 'UTC' AND a.ts < (d.day + 1)::timestamp AT TIME ZONE 'UTC'
                   AND (audit_page.before IS NULL OR a.id < audit_page.before)
                   AND (audit_page.user_id IS NULL OR a.user_id = audit_page.user_id)
                   AND (audit_page.tenant_id IS NULL OR a.tenant_id = audit_page.tenant_id)
                   AND (audit_page.actions IS NULL OR a.action = ANY (audit_page.actions))
                   AND (audit_page.result IS NULL OR a.result = audit_page.result)
                OFFSET 0) l
         ORDER BY l.id DESC
         LIMIT wanted;
    END IF;
    GET DIAGNOSTICS found_rows = ROW_COUNT;
    wanted := wanted - found_rows;
    last_day := first_day;
    sums := sums * 4;
  END LOOP;
END
$$;

COMMENT ON FUNCTION kavach.audit_page(text, text, text, timestamptz, timestamptz, text[], text, int, uuid) IS
  'What kavach_query_audit answers with these arguments, of which one is an agent, a user or a tenant, and max_rows is given.';

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
  SELECT l.id, l.ts, l.batch, l.kind, l.agent_id, l.user_id, l.tenant_id, l.action, l.resource, l.arguments,
         l.ip, l.result, l.code, l.reason, l.permission_id, l.policy_id, l.tokens_requested, l.min_tokens,
         l.tokens_released, l.tokens_cost, l.settles, l.request_id, l.provider, l.model, l.tokens_input,
         l.tokens_output, l.tokens_cache_read, l.tokens_cache_write, l.cost, l.metadata
    FROM (SELECT false AS is_page, l.* FROM kavach.ledger l
           UNION ALL
          SELECT true, p.*
            FROM kavach.audit_page(
                   kavach_query_audit.agent_id, kavach_query_audit.user_id, kavach_query_audit.tenant_id,
                   kavach_query_audit.since, kavach_query_audit.until, kavach_query_audit.actions,
                   kavach_query_audit.result, kavach_query_audit.max_rows, kavach_query_audit.before) p) l
   WHERE (l.is_page
          AND kavach.is_page(kavach_query_audit.agent_id, kavach_query_audit.user_id, kavach_query_audit.tenant_id, kavach_query_audit.max_rows))
      OR (NOT l.is_page
          AND NOT kavach.is_page(kavach_query_audit.agent_id, kavach_query_audit.user_id, kavach_query_audit.tenant_id, kavach_query_audit.max_rows)
          AND l.ts >= kavach.range_start(kavach_query_audit.since, kavach_query_audit.until)
          AND l.ts >= kavach.kept_since(kavach_query_audit.since, least(kavach_query_audit.until, kavach.uuid7_ts(kavach_query_audit.before) + interval '1 ms'))
          AND l.ts < coalesce(kavach_query_audit.until, 'infinity')
          AND l.ts < coalesce(kavach.uuid7_ts(kavach_query_audit.before) + interval '1 ms', 'infinity')
          AND (kavach_query_audit.before IS NULL OR l.id < kavach_query_audit.before)
          AND (kavach_query_audit.agent_id IS NULL OR l.agent_id = kavach_query_audit.agent_id)
          AND (kavach_query_audit.user_id IS NULL OR l.user_id = kavach_query_audit.user_id)
          AND (kavach_query_audit.tenant_id IS NULL OR l.tenant_id = kavach_query_audit.tenant_id)
          AND (kavach_query_audit.actions IS NULL OR l.action = ANY (kavach_query_audit.actions))
          AND (kavach_query_audit.result IS NULL OR l.result = kavach_query_audit.result))
   ORDER BY l.id DESC
   LIMIT CASE WHEN kavach.kept_since(kavach.range_start(kavach_query_audit.since, kavach_query_audit.until),
                                     least(kavach_query_audit.until, kavach.uuid7_ts(kavach_query_audit.before) + interval '1 ms')) IS NOT NULL
         THEN kavach.audit_limit(kavach_query_audit.max_rows, kavach_query_audit.actions, kavach_query_audit.result) END;
END;

COMMENT ON FUNCTION @extschema@.kavach_query_audit(text, text, text, timestamptz, timestamptz, text[], text, int, uuid) IS
'Ledger rows, newest first. Every argument narrows, NULL does not: agent_id, user_id, tenant_id; since (inclusive) and until (exclusive);
actions: any of these; result: allowed, denied or rate_limited; max_rows: at most so many; before: rows older than this id, to page.
Without since: from the end of the last month on that was dropped.
Errors: 22004 a NULL among the actions; 22023 where since is after until, for an unknown result and for an empty list of actions; 2201W negative max_rows; KV005 in a month that was dropped.';

-- Whether anybody has settled a call is asked call by call, and each call is fetched by its
-- id, whatever the planner would take these to be: as many as are open, which it cannot know.

CREATE VIEW kavach.unsettled AS
SELECT a.*
  FROM (SELECT l.*
          FROM kavach.open_authorization o
         CROSS JOIN LATERAL (SELECT CASE WHEN substr(o.id::text, 15, 1) = '7' THEN kavach.uuid7_ts(o.id) END) AS t (made)
         CROSS JOIN LATERAL
               (SELECT l.*
                  FROM kavach.audit_log l
                 WHERE l.id = o.id AND l.ts >= coalesce(t.made, '-infinity') AND l.ts < coalesce(t.made + interval '1 ms', 'infinity')
                OFFSET 0) l
         UNION ALL
        SELECT l.*
          FROM kavach.audit_log l
         WHERE l.batch > coalesce((SELECT t.high FROM kavach.tail t), -1) AND l.batch <= 9223372036854775807
         UNION ALL
        SELECT l.*
          FROM kavach.audit_log l
         WHERE l.batch = ANY ((SELECT t.open FROM kavach.tail t)::bigint[])
           AND l.batch >= (SELECT t.open[1] FROM kavach.tail t) AND l.batch <= (SELECT t.high FROM kavach.tail t)) a
 WHERE a.kind = 'authorize' AND a.result = 'allowed' AND a.tokens_cost IS NOT NULL
   AND (SELECT u.settles FROM kavach.audit_log u WHERE u.settles = a.id AND u.ts >= a.ts - interval '1 day' LIMIT 1) IS NULL;

COMMENT ON VIEW kavach.unsettled IS 'Admitted calls with a cost that nobody has settled yet: settle them with kavach_record_usage, 0 tokens where the model was not called.';

DO $$
DECLARE
  c record;
BEGIN
  FOR c IN
    SELECT a.attname, col_description(l.attrelid, l.attnum) AS text
      FROM pg_attribute a
      JOIN pg_attribute l ON l.attrelid = 'kavach.audit_log'::regclass AND l.attname = a.attname
     WHERE a.attrelid = 'kavach.unsettled'::regclass AND a.attnum > 0
  LOOP
    EXECUTE format('COMMENT ON COLUMN kavach.unsettled.%I IS %L', c.attname, c.text);
  END LOOP;
END
$$;

CREATE FUNCTION @extschema@.kavach_unsettled(
  agent_id text,
  until    timestamptz DEFAULT NULL)
RETURNS TABLE (audit_id uuid, ts timestamptz, action text, resource text, tokens_cost bigint, request_id text)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
  calls CONSTANT bigint := (SELECT coalesce(sum(m.calls), 0) FROM kavach.usage_monthly m WHERE m.agent_id = kavach_unsettled.agent_id);
BEGIN
  PERFORM kavach.check_id(kavach_unsettled.agent_id, 'agent_id');
  -- through what is open of all agents, or all calls of this one: whichever is less
  IF EXISTS (SELECT FROM kavach.open_authorization OFFSET calls) THEN
    RETURN QUERY
      SELECT a.id, a.ts, a.action, a.resource, a.tokens_cost, a.request_id
        FROM kavach.audit_log a
       WHERE a.agent_id = kavach_unsettled.agent_id AND a.ts < coalesce(kavach_unsettled.until, 'infinity')
         AND a.kind = 'authorize' AND a.result = 'allowed' AND a.tokens_cost IS NOT NULL
         AND (SELECT u.settles FROM kavach.audit_log u WHERE u.settles = a.id AND u.ts >= a.ts - interval '1 day' LIMIT 1) IS NULL
       ORDER BY a.id;
  ELSE
    RETURN QUERY
      SELECT u.id, u.ts, u.action, u.resource, u.tokens_cost, u.request_id
        FROM kavach.unsettled u
       WHERE u.agent_id = kavach_unsettled.agent_id AND u.ts < coalesce(kavach_unsettled.until, 'infinity')
       ORDER BY u.id;
  END IF;
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

-- What a ledger row counts as is said here alone, and in src/ledger/rollup.c: reports sum
-- these columns.  What is rare is asked first, since that is done for every row.

CREATE VIEW kavach.usage AS
SELECT a.ts, (a.ts AT TIME ZONE 'UTC')::date AS day, CASE WHEN a.user_id IS NOT NULL THEN a.agent_id END AS agent_id, a.user_id, a.tenant_id,
       CASE WHEN a.kind = 'authorize' THEN 1 ELSE 0 END AS calls,
       CASE WHEN a.result <> 'allowed' AND a.kind = 'authorize' THEN 1 ELSE 0 END AS denied,
       CASE WHEN a.tokens_requested IS NULL AND a.kind = 'authorize' AND a.result = 'allowed' THEN 1 ELSE 0 END AS calls_without_cost,
       coalesce(a.tokens_cost, 0) AS tokens_cost,
       coalesce(a.tokens_input, 0) AS tokens_input, coalesce(a.tokens_output, 0) AS tokens_output,
       coalesce(a.tokens_cache_read, 0) AS tokens_cache_read, coalesce(a.tokens_cache_write, 0) AS tokens_cache_write,
       coalesce(a.cost, 0) AS cost,
       a.provider, a.model,
       CASE WHEN a.settles IS NOT NULL AND (a.provider IS NOT NULL OR a.model IS NOT NULL) THEN coalesce(a.tokens_released, 0) ELSE 0 END AS tokens_moved,
       a.action, a.resource, a.metadata, a.id, a.batch
  FROM kavach.audit_log a;

COMMENT ON VIEW kavach.usage IS 'What each ledger row counts as: every report sums these columns.';
COMMENT ON COLUMN kavach.usage.ts IS 'Clock time of the call.';
COMMENT ON COLUMN kavach.usage.day IS 'Its UTC day.';
COMMENT ON COLUMN kavach.usage.agent_id IS 'Who called; NULL for an unknown agent.';
COMMENT ON COLUMN kavach.usage.user_id IS 'The agent''s owner at that time; NULL for an unknown agent.';
COMMENT ON COLUMN kavach.usage.tenant_id IS 'The agent''s tenant at that time.';
COMMENT ON COLUMN kavach.usage.calls IS '1 for an authorize decision, else 0.';
COMMENT ON COLUMN kavach.usage.denied IS '1 for one that refused, else 0.';
COMMENT ON COLUMN kavach.usage.calls_without_cost IS '1 for one that admitted a call which gave no cost, else 0.';
COMMENT ON COLUMN kavach.usage.tokens_cost IS 'What the row charges; 0 where it gave no cost.';
COMMENT ON COLUMN kavach.usage.provider IS 'Who served the call, when known.';
COMMENT ON COLUMN kavach.usage.model IS 'The model that served it, when known.';
COMMENT ON COLUMN kavach.usage.tokens_moved IS 'Of a settlement that names provider or model: the estimate that it replaces, which was charged without. By model, tokens_cost + tokens_moved count under its own and -tokens_moved under NULL.';
COMMENT ON COLUMN kavach.usage.action IS 'What was asked: the action.';
COMMENT ON COLUMN kavach.usage.resource IS 'What was asked: the resource.';
COMMENT ON COLUMN kavach.usage.metadata IS 'The application''s own notes, a JSON object.';
COMMENT ON COLUMN kavach.usage.id IS 'The ledger row''s id.';
COMMENT ON COLUMN kavach.usage.batch IS 'The batch that it belongs to.';

CREATE VIEW kavach.usage_entry AS
SELECT u.id, u.batch, u.ts, u.day, u.tenant_id, u.user_id, u.agent_id, e.provider, e.model, u.action, u.resource, u.metadata,
       u.calls * e.n AS calls, u.denied * e.n AS denied, u.calls_without_cost * e.n AS calls_without_cost, e.tokens_cost,
       u.tokens_input * e.n AS tokens_input, u.tokens_output * e.n AS tokens_output,
       u.tokens_cache_read * e.n AS tokens_cache_read, u.tokens_cache_write * e.n AS tokens_cache_write, u.cost * e.n AS cost
  FROM kavach.usage u
 CROSS JOIN LATERAL (VALUES (1, u.provider, u.model, u.tokens_cost + u.tokens_moved), (0, NULL, NULL, -u.tokens_moved)) AS e (n, provider, model, tokens_cost)
 WHERE e.n = 1 OR u.tokens_moved <> 0;

COMMENT ON VIEW kavach.usage_entry IS 'kavach.usage for sums by provider and model: a settlement that names one is two rows, so that it takes its estimate away where that was charged.';

-- Each row of the ledger once, in the sums of its month, in those of its day, in the day's
-- total, as the row that it is, and as one of the tail where no sum has it yet: who reads
-- this takes one part for each stretch of time, and the tail with the sums.  In one statement, so that
-- sums and tail are of one snapshot.
--
-- Statistics tell nothing about the tail: it is looked for by index whatever they say,
-- since a range with both bounds is taken to be small.  What is true of a part is told
-- by a constant of that name, so that the planner drops those that are not wanted.

CREATE VIEW kavach.usage_part AS
SELECT 'monthly' AS part, NULL::uuid AS id, (m.month::timestamp AT TIME ZONE 'UTC') AS ts, m.month AS day,
       m.tenant_id, m.user_id, m.agent_id, m.provider, m.model, NULL::text AS action, NULL::text AS resource, NULL::jsonb AS metadata,
       m.calls, m.denied, m.calls_without_cost, m.tokens_cost, m.tokens_input, m.tokens_output, m.tokens_cache_read, m.tokens_cache_write, m.cost
  FROM kavach.usage_monthly m
 UNION ALL
SELECT 'daily', NULL, (d.day::timestamp AT TIME ZONE 'UTC'), d.day,
       d.tenant_id, d.user_id, d.agent_id, d.provider, d.model, NULL, NULL, NULL,
       d.calls, d.denied, d.calls_without_cost, d.tokens_cost, d.tokens_input, d.tokens_output, d.tokens_cache_read, d.tokens_cache_write, d.cost
  FROM kavach.usage_daily d
 UNION ALL
SELECT 'together', NULL, (t.day::timestamp AT TIME ZONE 'UTC'), t.day, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       t.calls, t.denied, t.calls_without_cost, t.tokens_cost, t.tokens_input, t.tokens_output, t.tokens_cache_read, t.tokens_cache_write, t.cost
  FROM kavach.usage_total t
 UNION ALL
SELECT 'row', e.id, e.ts, e.day, e.tenant_id, e.user_id, e.agent_id, e.provider, e.model, e.action, e.resource, e.metadata,
       e.calls, e.denied, e.calls_without_cost, e.tokens_cost, e.tokens_input, e.tokens_output, e.tokens_cache_read, e.tokens_cache_write, e.cost
  FROM kavach.usage_entry e
 UNION ALL
SELECT 'tail', e.id, e.ts, e.day, e.tenant_id, e.user_id, e.agent_id, e.provider, e.model, e.action, e.resource, e.metadata,
       e.calls, e.denied, e.calls_without_cost, e.tokens_cost, e.tokens_input, e.tokens_output, e.tokens_cache_read, e.tokens_cache_write, e.cost
  FROM kavach.usage_entry e
 WHERE e.batch > coalesce((SELECT t.high FROM kavach.tail t), -1) AND e.batch <= 9223372036854775807
 UNION ALL
SELECT 'tail', e.id, e.ts, e.day, e.tenant_id, e.user_id, e.agent_id, e.provider, e.model, e.action, e.resource, e.metadata,
       e.calls, e.denied, e.calls_without_cost, e.tokens_cost, e.tokens_input, e.tokens_output, e.tokens_cache_read, e.tokens_cache_write, e.cost
  FROM kavach.usage_entry e
 WHERE e.batch = ANY ((SELECT t.open FROM kavach.tail t)::bigint[])
   AND e.batch >= (SELECT t.open[1] FROM kavach.tail t) AND e.batch <= (SELECT t.high FROM kavach.tail t);

COMMENT ON VIEW kavach.usage_part IS 'What reports sum: the ledger''s rows, what months and days of closed batches add up to, and the rows that are in none of these sums yet. kavach.usage_between puts a range together.';
COMMENT ON COLUMN kavach.usage_part.part IS 'monthly or daily: the sum of the closed batches'' rows in it, by agent and model; together: of a day, all agents''; row: a row of kavach.usage_entry; tail: the same, of a batch that is not in the sums.';
COMMENT ON COLUMN kavach.usage_part.id IS 'Of a row: its id.';
COMMENT ON COLUMN kavach.usage_part.ts IS 'Of a row: clock time of the call; of a sum: the start of its month or day.';
COMMENT ON COLUMN kavach.usage_part.day IS 'Its UTC day.';

CREATE FUNCTION kavach.usage_between(
  since timestamptz,
  until timestamptz,
  whole text)
RETURNS SETOF kavach.usage_part
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT p.*
    FROM kavach.usage_part p
   WHERE (p.part = 'monthly' AND usage_between.whole = 'monthly'
          AND p.day >= (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 1) AT TIME ZONE 'UTC')::date
          AND p.day < (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 2) AT TIME ZONE 'UTC')::date)
      OR (p.part = 'daily' AND usage_between.whole <> 'together'
          AND (p.day >= (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0) AT TIME ZONE 'UTC')::date
               AND p.day < (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 1) AT TIME ZONE 'UTC')::date
               OR p.day >= (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 2) AT TIME ZONE 'UTC')::date
               AND p.day < (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3) AT TIME ZONE 'UTC')::date))
      OR (p.part = 'together' AND usage_between.whole = 'together'
          AND p.day >= (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0) AT TIME ZONE 'UTC')::date
          AND p.day < (kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3) AT TIME ZONE 'UTC')::date)
      OR (p.part = 'tail'
          AND p.ts >= kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0)
          AND p.ts < kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3))
      OR (p.part = 'row'
          AND (p.ts >= usage_between.since
               AND p.ts < kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0)
               OR p.ts >= kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3)
               AND p.ts < usage_between.until)
          AND (p.id >= kavach.uuid7_since(usage_between.since)
               AND p.id < kavach.uuid7_until(kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0))
               OR p.id >= kavach.uuid7_since(kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3))
               AND p.id < kavach.uuid7_until(usage_between.until)
               -- by hand
               OR p.id >= kavach.uuid7_since('-infinity')
               AND p.id < kavach.uuid7_since(CASE WHEN isfinite(usage_between.since) THEN usage_between.since
                                                  ELSE kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3) END, true)
               OR p.id >= kavach.uuid7_until(CASE WHEN isfinite(usage_between.until) THEN usage_between.until
                                                  ELSE kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0) END, true)
               AND p.id <= kavach.uuid7_until('infinity')))
   UNION ALL
  SELECT n.*
    FROM kavach.no_rows(kavach.require_months(usage_between.since, kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 0)),
                        NULL::kavach.usage_part) n
   UNION ALL
  SELECT n.*
    FROM kavach.no_rows(kavach.require_months(kavach.range_edge(usage_between.since, usage_between.until, usage_between.whole, 3), usage_between.until),
                        NULL::kavach.usage_part) n;
END;

COMMENT ON FUNCTION kavach.usage_between(timestamptz, timestamptz, text) IS
'What the ledger''s rows from since (inclusive) to until (exclusive) add up to, in pieces: whole UTC months and days as sums, pieces of days as rows, and the rows that are not in the sums yet. Neither bound is NULL; infinity leaves a side open. Every report sums these.
whole: monthly; daily, where days are to be told apart; together, where nobody is: of days, all agents''; NULL: rows alone.
The rows of a piece of a day are found by the time in their ids. One that is put in by hand is found, too, if its id is the UUIDv7 of its ts, or of no time in the months of the range.
Error KV005 where rows of a month that was dropped are needed.';

CREATE VIEW kavach.usage_by_agent AS
SELECT agent_id,
       sum(calls)::bigint AS calls, sum(denied)::bigint AS denied, sum(calls_without_cost)::bigint AS calls_without_cost, sum(tokens_cost) AS tokens_cost
  FROM kavach.usage_part
 WHERE part IN ('monthly', 'tail')
 GROUP BY agent_id;

COMMENT ON VIEW kavach.usage_by_agent IS 'Usage of every agent, over all time. For a range use kavach_cost_by_agent.';
COMMENT ON COLUMN kavach.usage_by_agent.agent_id IS 'The agent; NULL: refused calls of unknown agents.';

CREATE VIEW kavach.usage_by_user AS
SELECT user_id,
       sum(calls)::bigint AS calls, sum(denied)::bigint AS denied, sum(calls_without_cost)::bigint AS calls_without_cost, sum(tokens_cost) AS tokens_cost
  FROM kavach.usage_part
 WHERE part IN ('monthly', 'tail')
 GROUP BY user_id;

COMMENT ON VIEW kavach.usage_by_user IS 'Usage of every user, over all time. For a range use kavach_cost_by_user.';
COMMENT ON COLUMN kavach.usage_by_user.user_id IS 'The user; NULL: refused calls of unknown agents.';

CREATE VIEW kavach.usage_by_day AS
SELECT day,
       sum(calls)::bigint AS calls, sum(denied)::bigint AS denied, sum(calls_without_cost)::bigint AS calls_without_cost, sum(tokens_cost) AS tokens_cost
  FROM kavach.usage_part
 WHERE part IN ('together', 'tail')
 GROUP BY day;

COMMENT ON VIEW kavach.usage_by_day IS 'Usage of every UTC day that has ledger rows. For a range or one agent use kavach_cost_by_day.';
COMMENT ON COLUMN kavach.usage_by_day.day IS 'The UTC day.';

DO $$
DECLARE
  c record;
BEGIN
  FOR c IN
    SELECT a.attrelid::regclass AS view, a.attname AS name, coalesce(col_description('kavach.usage_daily'::regclass, b.attnum),
                                                                     col_description('kavach.usage'::regclass, u.attnum)) AS text
      FROM pg_attribute a
      LEFT JOIN pg_attribute b ON b.attrelid = 'kavach.usage_daily'::regclass AND b.attname = a.attname AND b.atttypid <> 'date'::regtype AND b.attname <> 'tokens_cost'
      LEFT JOIN pg_attribute u ON u.attrelid = 'kavach.usage'::regclass AND u.attname = a.attname
     WHERE a.attrelid IN ('kavach.usage'::regclass, 'kavach.usage_entry'::regclass, 'kavach.usage_part'::regclass)
       AND a.attnum > 0 AND col_description(a.attrelid, a.attnum) IS NULL
     UNION ALL
    SELECT v.name::regclass, n.name, n.text
      FROM (VALUES ('kavach.usage_by_agent'), ('kavach.usage_by_user'), ('kavach.usage_by_day')) AS v (name),
           (VALUES ('calls', 'Authorize decisions.'), ('denied', 'Those refused.'), ('calls_without_cost', 'Those admitted that gave no cost.'),
                   ('tokens_cost', 'sum(tokens_cost) over the ledger: the bill.')) AS n (name, text)
  LOOP
    EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', c.view, c.name, c.text);
  END LOOP;
END
$$;

CREATE FUNCTION @extschema@.kavach_cost_by_agent(
  since timestamptz,
  until timestamptz)
RETURNS TABLE (agent_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT u.agent_id, sum(u.calls)::bigint, sum(u.denied)::bigint, sum(u.calls_without_cost)::bigint, sum(u.tokens_cost)
    FROM kavach.usage_between(kavach.range_start(kavach_cost_by_agent.since, kavach_cost_by_agent.until),
                              coalesce(kavach_cost_by_agent.until, 'infinity'), 'monthly') u
   GROUP BY u.agent_id;
END;

COMMENT ON FUNCTION @extschema@.kavach_cost_by_agent(timestamptz, timestamptz) IS
'Usage by agent from since (inclusive) to until (exclusive); NULL for no bound.
agent_id: NULL: refused calls of unknown agents; calls: authorize decisions; denied: those refused; calls_without_cost: those admitted that gave no cost; tokens_cost: the sum over the ledger.
Errors: 22023 where since is after until.';

CREATE FUNCTION @extschema@.kavach_cost_by_user(
  since timestamptz,
  until timestamptz)
RETURNS TABLE (user_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT u.user_id, sum(u.calls)::bigint, sum(u.denied)::bigint, sum(u.calls_without_cost)::bigint, sum(u.tokens_cost)
    FROM kavach.usage_between(kavach.range_start(kavach_cost_by_user.since, kavach_cost_by_user.until),
                              coalesce(kavach_cost_by_user.until, 'infinity'), 'monthly') u
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
  SELECT u.day, sum(u.calls)::bigint, sum(u.denied)::bigint, sum(u.calls_without_cost)::bigint, sum(u.tokens_cost)
    FROM kavach.usage_between(kavach.range_start(kavach_cost_by_day.since, kavach_cost_by_day.until),
                              coalesce(kavach_cost_by_day.until, 'infinity'),
                              CASE WHEN kavach_cost_by_day.agent_id IS NULL THEN 'together' ELSE 'daily' END) u
   WHERE kavach_cost_by_day.agent_id IS NULL OR u.agent_id = kavach_cost_by_day.agent_id
   GROUP BY u.day;
END;

COMMENT ON FUNCTION @extschema@.kavach_cost_by_day(text, timestamptz, timestamptz) IS
'Usage by UTC day, of one agent or of all (NULL), from since (inclusive) to until (exclusive); NULL for no bound. Days without ledger rows are absent. The other columns are those of kavach_cost_by_agent.
Errors: 22023 where since is after until.';

CREATE FUNCTION @extschema@.kavach_billing_report(year int, month int)
RETURNS TABLE (tenant_id text, user_id text, calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT u.tenant_id, u.user_id, sum(u.calls)::bigint, sum(u.denied)::bigint, sum(u.calls_without_cost)::bigint, sum(u.tokens_cost)
    FROM kavach.usage_between(kavach.month_start(kavach_billing_report.year, kavach_billing_report.month),
                              kavach.month_end(kavach_billing_report.year, kavach_billing_report.month), 'monthly') u
   GROUP BY u.tenant_id, u.user_id;
END;

COMMENT ON FUNCTION @extschema@.kavach_billing_report(int, int) IS
'The bill of a UTC month: usage by tenant and user. The other columns are those of kavach_cost_by_agent; NULL, NULL: refused calls of unknown agents.
Errors: 22004, 22023 no such month.';

-- The general form.

CREATE FUNCTION kavach.report_whole(group_by text[], bucket text)
RETURNS text
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_report_whole';

COMMENT ON FUNCTION kavach.report_whole(text[], text) IS
  'What tells such groups and buckets apart, for kavach.usage_between: monthly or daily sums, or totals; NULL where only rows do. Errors: 22004 a NULL among the groups; 22023 an unknown group or bucket.';

CREATE FUNCTION kavach.groups_by(group_by text[], column_name text)
RETURNS boolean
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_groups_by';

COMMENT ON FUNCTION kavach.groups_by(text[], text) IS
  'Whether a report is grouped by this column of kavach.usage_part. Errors: as kavach.report_whole.';

CREATE FUNCTION kavach.check_report(group_by text[], bucket text, since timestamptz, until timestamptz, fill_gaps boolean)
RETURNS boolean
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_check_report';

COMMENT ON FUNCTION kavach.check_report(text[], text, timestamptz, timestamptz, boolean) IS
  'True, once the arguments of kavach_usage_report are checked: a report that comes to look at no row must refuse them, too. Errors: as kavach.report_whole; 22004 fill_gaps is NULL; 22023 gaps to fill without bucket or bounds.';

CREATE FUNCTION kavach.label_keys(group_by text[])
RETURNS text[]
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'kavach_label_keys';

COMMENT ON FUNCTION kavach.label_keys(text[]) IS
  'Of what a report is grouped by, the keys of metadata: KEY of each metadata.KEY.';

CREATE FUNCTION kavach.usage_grouped(since timestamptz, until timestamptz, group_by text[], bucket text)
RETURNS TABLE (
  bucket_start timestamp, tenant_id text, user_id text, agent_id text, provider text, model text, action text, resource text, labels jsonb,
  calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric,
  tokens_input numeric, tokens_output numeric, tokens_cache_read numeric, tokens_cache_write numeric, cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT CASE WHEN usage_grouped.bucket <> 'none' THEN date_trunc(usage_grouped.bucket, u.ts AT TIME ZONE 'UTC') END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'tenant_id') THEN u.tenant_id END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'user_id') THEN u.user_id END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'agent_id') THEN u.agent_id END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'provider') THEN u.provider END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'model') THEN u.model END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'action') THEN u.action END,
         CASE WHEN kavach.groups_by(usage_grouped.group_by, 'resource') THEN u.resource END,
         CASE WHEN cardinality(kavach.label_keys(usage_grouped.group_by)) > 0 THEN
                (SELECT jsonb_object_agg(k.key, u.metadata -> k.key) FROM unnest(kavach.label_keys(usage_grouped.group_by)) AS k (key)) END,
         u.calls, u.denied, u.calls_without_cost, u.tokens_cost,
         u.tokens_input, u.tokens_output, u.tokens_cache_read, u.tokens_cache_write, u.cost
    FROM kavach.usage_between(usage_grouped.since, usage_grouped.until,
                              kavach.report_whole(usage_grouped.group_by, usage_grouped.bucket)) u;
END;

COMMENT ON FUNCTION kavach.usage_grouped(timestamptz, timestamptz, text[], text) IS
  'kavach.usage_between with the columns that kavach_usage_report groups by, NULL in those it does not.';

CREATE FUNCTION @extschema@.kavach_usage_report(
  since     timestamptz DEFAULT NULL,
  until     timestamptz DEFAULT NULL,
  group_by  text[] DEFAULT NULL,
  bucket    text DEFAULT 'none',
  fill_gaps boolean DEFAULT false)
RETURNS TABLE (
  bucket_start timestamptz, tenant_id text, user_id text, agent_id text, provider text, model text, action text, resource text, labels jsonb,
  calls bigint, denied bigint, calls_without_cost bigint, tokens_cost numeric,
  tokens_input numeric, tokens_output numeric, tokens_cache_read numeric, tokens_cache_write numeric, cost numeric)
LANGUAGE sql STABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT r.bucket_start AT TIME ZONE 'UTC', r.tenant_id, r.user_id, r.agent_id, r.provider, r.model, r.action, r.resource, r.labels,
         sum(r.calls)::bigint, sum(r.denied)::bigint, sum(r.calls_without_cost)::bigint, sum(r.tokens_cost),
         sum(r.tokens_input), sum(r.tokens_output), sum(r.tokens_cache_read), sum(r.tokens_cache_write), sum(r.cost)
    FROM (SELECT u.*
            FROM kavach.usage_grouped(kavach.range_start(kavach_usage_report.since, kavach_usage_report.until),
                                      coalesce(kavach_usage_report.until, 'infinity'),
                                      kavach_usage_report.group_by, coalesce(kavach_usage_report.bucket, 'none')) u
           UNION ALL
          -- of every group that there is, nothing in every bucket
          SELECT g.bucket_start, k.tenant_id, k.user_id, k.agent_id, k.provider, k.model, k.action, k.resource, k.labels,
                 0, 0, 0, 0, 0, 0, 0, 0, 0
            FROM (SELECT u.tenant_id, u.user_id, u.agent_id, u.provider, u.model, u.action, u.resource, u.labels
                    FROM kavach.usage_grouped(kavach.range_start(kavach_usage_report.since, kavach_usage_report.until),
                                              coalesce(kavach_usage_report.until, 'infinity'),
                                              kavach_usage_report.group_by, coalesce(kavach_usage_report.bucket, 'none')) u
                   WHERE cardinality(kavach_usage_report.group_by) > 0
                   UNION
                  SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL
                   WHERE coalesce(cardinality(kavach_usage_report.group_by), 0) = 0) k
           CROSS JOIN (SELECT DISTINCT date_trunc(kavach_usage_report.bucket, h.hour)
                         FROM generate_series(
                                CASE WHEN kavach_usage_report.fill_gaps
                                      AND kavach.check_report(kavach_usage_report.group_by, kavach_usage_report.bucket,
                                                              kavach_usage_report.since, kavach_usage_report.until, kavach_usage_report.fill_gaps)
                                     THEN date_trunc(kavach_usage_report.bucket, kavach_usage_report.since AT TIME ZONE 'UTC') END,
                                kavach_usage_report.until AT TIME ZONE 'UTC' - interval '1 us', interval '1 hour') AS h (hour)) AS g (bucket_start)
           WHERE kavach_usage_report.fill_gaps) r
   WHERE kavach.check_report(kavach_usage_report.group_by, kavach_usage_report.bucket,
                             kavach_usage_report.since, kavach_usage_report.until, kavach_usage_report.fill_gaps)
   GROUP BY r.bucket_start, r.tenant_id, r.user_id, r.agent_id, r.provider, r.model, r.action, r.resource, r.labels;
END;

COMMENT ON FUNCTION @extschema@.kavach_usage_report(timestamptz, timestamptz, text[], text, boolean) IS
'Usage from since (inclusive) to until (exclusive), NULL for no bound, by what is asked for.
group_by: any of tenant, user, agent, provider, model, action, resource, and metadata.KEY for a key of the metadata; NULL: one group. What it does not name is NULL in every row; labels has the metadata: {"KEY": value}, null where a row has none.
bucket: hour, day or month (bucket_start: UTC) or none. fill_gaps: every group that there is in the range has a row for each bucket, of zeros where it has no usage; needs both bounds.
Months, days, tenants, users, agents, providers and models are summed up beforehand. Hours, actions, resources and metadata only the rows of the ledger know: that takes as long as there are rows in the range.
By provider or model, what is not settled, or was recorded without one, is NULL. calls, denied, calls_without_cost and tokens_cost are those of kavach_cost_by_agent; token classes and cost are as far as known.
Errors: 22023 an unknown group or bucket, since after until, gaps without bucket or bounds; 22004 a NULL among the groups. KV005 what only rows know, of a month that was dropped.';

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
