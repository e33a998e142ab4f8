-- rollups.sql: judges whether batches and rollups add up to the ledger: as they are, what is open read from its rows,
-- and closed.  After usage.sql, which has the windows.  Every row that it prints is a fault.  Nobody else may write.

-- With what is open: in one statement, as the worker closes batches meanwhile.
WITH tail AS (SELECT coalesce((SELECT high FROM kavach.tail), -1) AS high, (SELECT open FROM kavach.tail) AS open),
     summed AS (
  SELECT (SELECT coalesce(sum(tokens_cost), 0) FROM kavach.usage_daily) AS tokens, (SELECT coalesce(sum(calls), 0) FROM kavach.usage_monthly) AS calls,
         (SELECT coalesce(sum(rows), 0) FROM kavach.batch) AS rows)
SELECT 'rollups and tail are not the ledger', *
  FROM (SELECT s.tokens + coalesce(sum(a.tokens_cost) FILTER (WHERE t.open), 0) AS tokens, coalesce(sum(a.tokens_cost), 0) AS all_tokens,
               s.calls + count(*) FILTER (WHERE t.open AND a.kind = 'authorize') AS calls, count(*) FILTER (WHERE a.kind = 'authorize') AS all_calls,
               s.rows + count(*) FILTER (WHERE t.open) AS rows, count(*) AS all_rows
          FROM summed s, (SELECT a.kind, a.tokens_cost, a.batch FROM kavach.audit_log a) a
         CROSS JOIN LATERAL (SELECT a.batch > high OR a.batch = ANY (open) FROM tail) t (open)
         GROUP BY s.tokens, s.calls, s.rows) f
 WHERE tokens <> all_tokens OR calls <> all_calls OR rows <> all_rows;

DO $$ BEGIN PERFORM kavach.close_batches(); END $$;

SELECT 'a batch is open', * FROM kavach.batch_status;

CREATE TEMP TABLE by_day AS
SELECT (ts AT TIME ZONE 'UTC')::date AS day, tenant_id, user_id, CASE WHEN user_id IS NOT NULL THEN agent_id END AS agent_id, provider, model,
       count(*) FILTER (WHERE kind = 'authorize') AS calls,
       count(*) FILTER (WHERE kind = 'authorize' AND result <> 'allowed') AS denied,
       count(*) FILTER (WHERE kind = 'authorize' AND result = 'allowed' AND tokens_requested IS NULL) AS calls_without_cost,
       coalesce(sum(tokens_cost), 0) AS tokens_cost
  FROM kavach.audit_log GROUP BY 1, 2, 3, 4, 5, 6;

CREATE TEMP VIEW rolled_up AS
SELECT 'day' AS by, day AS start, tenant_id, user_id, agent_id, calls, denied, calls_without_cost, tokens_cost FROM kavach.usage_daily
 UNION ALL
SELECT 'month', month, tenant_id, user_id, agent_id, calls, denied, calls_without_cost, tokens_cost FROM kavach.usage_monthly
 UNION ALL
SELECT 'total', day, NULL, NULL, NULL, calls, denied, calls_without_cost, tokens_cost FROM kavach.usage_total;

CREATE TEMP VIEW raw AS
SELECT 'day' AS by, day AS start, tenant_id, user_id, agent_id, calls, denied, calls_without_cost, tokens_cost FROM by_day
 UNION ALL
SELECT 'month', date_trunc('month', day)::date, tenant_id, user_id, agent_id, calls, denied, calls_without_cost, tokens_cost FROM by_day
 UNION ALL
SELECT 'total', day, NULL, NULL, NULL, calls, denied, calls_without_cost, tokens_cost FROM by_day;

SELECT 'a rollup is not the sum of the rows', by, start, tenant_id, user_id, agent_id, sum(calls), sum(denied), sum(calls_without_cost), sum(tokens_cost)
  FROM (SELECT * FROM rolled_up
         UNION ALL
        SELECT by, start, tenant_id, user_id, agent_id, -calls, -denied, -calls_without_cost, -tokens_cost FROM raw) r
 GROUP BY 2, 3, 4, 5, 6
HAVING sum(calls) <> 0 OR sum(denied) <> 0 OR sum(calls_without_cost) <> 0 OR sum(tokens_cost) <> 0;

-- Hours of agents go after two days, by the system's clock.
SELECT 'a window is not the sum of the rows', scope, subject, period, start, sum(tokens), sum(calls)
  FROM (SELECT scope, subject, period, start, tokens, calls FROM kavach.usage_scope
         UNION ALL
        SELECT scope, coalesce(subject, ''), period, start, -tokens, -calls FROM usage WHERE scope <> 'permission') r
 WHERE (scope, period) <> ('agent', 'hour') OR start >= now() - interval '2 days'
 GROUP BY 2, 3, 4, 5
HAVING sum(tokens) <> 0 OR sum(calls) <> 0;

SELECT 'a batch is not its rows', b.*, r.*
  FROM kavach.batch b
  FULL JOIN (SELECT batch, date_trunc('month', ts AT TIME ZONE 'UTC')::date AS month, count(*) AS rows, coalesce(sum(tokens_cost), 0) AS tokens_cost
               FROM kavach.audit_log GROUP BY 1, 2) r ON (r.batch, r.month) = (b.batch, b.month)
 WHERE (b.rows, b.tokens_cost) IS DISTINCT FROM (r.rows, r.tokens_cost);

SELECT 'the order of closing has gaps', count(*), max(seal_no) FROM kavach.batch HAVING count(*) <> coalesce(max(seal_no), 0);

SELECT 'an open authorization is not listed', a.id
  FROM kavach.audit_log a
 WHERE a.kind = 'authorize' AND a.result = 'allowed' AND a.tokens_cost IS NOT NULL
   AND NOT EXISTS (SELECT FROM kavach.audit_log u WHERE u.settles = a.id)
   AND NOT EXISTS (SELECT FROM kavach.open_authorization o WHERE o.id = a.id);
