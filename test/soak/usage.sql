-- usage.sql: usage, limits and how they stood, by the ledger alone; for judges (check.sql).
--
-- Apart from kavach's own code: the ledger and the policies are read as plain tables, windows
-- and sums are computed here.
--
-- The commit order is that of commit timestamps.  They are taken before a commit becomes
-- visible, so a charge that counts on a refund comes after it.

-- ---- the ledger by scope and window ----

CREATE TEMP TABLE ledger AS
SELECT *, pg_xact_commit_timestamp(xmin) AS committed,
       -- limits count what a settlement gives back where it was charged
       least(ts, (SELECT a.ts FROM kavach.audit_log a WHERE a.id = l.settles AND l.tokens_cost < 0)) AS counts_at
  FROM kavach.audit_log l;
CREATE INDEX ON ledger (id);
ANALYZE ledger;

CREATE TEMP TABLE charge AS
SELECT s.scope, s.subject, w.period, w.start,
       coalesce(tokens_cost, 0) AS tokens, (kind = 'authorize')::int AS calls, committed
  FROM ledger
 CROSS JOIN LATERAL (VALUES ('agent', agent_id), ('user', user_id), ('tenant', tenant_id), ('all', NULL)) AS s (scope, subject)
 CROSS JOIN LATERAL (VALUES ('hour', date_trunc('hour', counts_at)), ('day', date_trunc('day', counts_at)),
                            ('month', date_trunc('month', counts_at)), ('total', '-infinity')) AS w (period, start)
 WHERE result = 'allowed' AND (s.scope = 'all' OR s.subject IS NOT NULL);
ANALYZE charge;

CREATE TEMP TABLE usage AS
SELECT scope, subject, period, start, sum(tokens)::bigint AS tokens, sum(calls)::bigint AS calls
  FROM charge GROUP BY 1, 2, 3, 4;
INSERT INTO usage
SELECT 'permission', permission_id::text, 'five_minutes', date_bin('5 minutes', ts, '2000-01-01'), 0, count(*)
  FROM ledger WHERE result = 'allowed' AND kind = 'authorize' AND permission_id IS NOT NULL
 GROUP BY 1, 2, 3, 4;
CREATE INDEX ON usage (scope, period, subject);
ANALYZE usage;

-- ---- limits, each for a subject ----

CREATE TEMP TABLE subject AS
SELECT scope, subject FROM usage
 UNION
SELECT s.scope, s.subject
  FROM kavach.agent
 CROSS JOIN LATERAL (VALUES ('agent', agent_id), ('user', user_id), ('tenant', tenant_id), ('all', NULL)) AS s (scope, subject)
 WHERE s.scope = 'all' OR s.subject IS NOT NULL;

CREATE TEMP TABLE bound AS
SELECT p.policy_id, s.scope, s.subject, l.measure, l.period, l.amount
  FROM kavach.budget_policy p
  JOIN kavach.budget_limit l USING (policy_id)
  JOIN subject s ON s.scope = p.scope AND (p.subject = s.subject OR p.each OR p.scope = 'all')
 WHERE p.enabled AND p.action <> 'warn'
   AND NOT (p.each AND EXISTS (
         SELECT FROM kavach.budget_policy o JOIN kavach.budget_limit m USING (policy_id)
          WHERE o.enabled AND o.action <> 'warn' AND o.scope = p.scope AND o.subject = s.subject
            AND (m.measure, m.period) = (l.measure, l.period)));

-- How each limit stood after each commit.  Rows of one commit count together.
CREATE TEMP TABLE step AS
SELECT b.policy_id, b.scope, b.subject, b.measure, b.period, c.start, b.amount, c.committed,
       sum(CASE b.measure WHEN 'tokens' THEN c.tokens ELSE c.calls END)
         OVER (PARTITION BY b.policy_id, b.subject, b.measure, b.period, c.start ORDER BY c.committed) AS used
  FROM bound b
  JOIN charge c ON c.scope = b.scope AND c.period = b.period AND c.subject IS NOT DISTINCT FROM b.subject;
CREATE INDEX ON step (policy_id, start, committed);
ANALYZE step;

-- ---- the counters ----

CREATE FUNCTION pg_temp.wrong_counters(moment text)
RETURNS TABLE (fault text, scope text, subject text, period text, period_start timestamptz, counted text, ledger text)
LANGUAGE sql
AS $$
  SELECT 'counters, ' || moment, c.scope, c.subject, c.period, c.period_start,
         format('tokens %s+%s calls %s+%s pins %s', tokens_used, tokens_pending, calls_used, calls_pending, pins),
         format('tokens %s calls %s', u.tokens, u.calls)
    FROM kavach.counters c
    LEFT JOIN usage u ON u.scope = c.scope AND u.period = c.period
     AND u.subject IS NOT DISTINCT FROM c.subject AND u.start = c.period_start
   WHERE (tokens_used, calls_used) <> (coalesce(u.tokens, 0), coalesce(u.calls, 0))
      OR tokens_pending <> 0 OR calls_pending <> 0 OR pins <> 0
$$;
