-- check.sql: judges a round of the soak test by the clients' log, the ledger and the policies.
--
-- Apart from kavach's own code: the ledger and the policies are read as plain tables, windows
-- and sums are computed here.  Every row that it prints is a fault.  psql variables: unit,
-- whether all calls were of one token and nothing was undone.
\set ON_ERROR_STOP on
\set QUIET on
\pset tuples_only on
\pset format unaligned
SET client_min_messages = warning;
SET TimeZone = 'UTC';
SET work_mem = '64MB';
ANALYZE soak.log;

\ir usage.sql
\ir rollups.sql

-- ---- faults ----

SELECT 'no admitted call was acknowledged: there is nothing to judge'
 WHERE NOT EXISTS (SELECT FROM soak.log JOIN ledger USING (id) WHERE state = 'kept' AND allowed);

SELECT 'acknowledged, and not in the ledger as told', l.*
  FROM soak.log l LEFT JOIN ledger r USING (id)
 WHERE l.state = 'kept'
   AND (r.id IS NULL OR r.agent_id <> l.agent OR r.code <> l.code OR (r.result = 'allowed') <> l.allowed
        OR coalesce(r.tokens_cost, 0) <> l.tokens OR r.tokens_requested <> l.cost);

SELECT 'rolled back, and in the ledger', l.*
  FROM soak.log l JOIN ledger r USING (id)
 WHERE l.state = 'undone'
   AND NOT EXISTS (SELECT FROM soak.log o WHERE o.id = l.id AND o.state <> 'undone');

SELECT 'in the ledger, and nobody was told', r.agent_id, count(*), min(r.id::text)
  FROM ledger r
 WHERE NOT EXISTS (SELECT FROM soak.log l WHERE l.id = r.id)
 GROUP BY r.agent_id
HAVING count(*) > (SELECT count(*) FROM soak.log l WHERE l.state = 'unknown' AND l.id IS NULL AND l.agent = r.agent_id);

SELECT 'a transaction in part', client, txn, count(r.id), count(*)
  FROM soak.log l LEFT JOIN ledger r USING (id)
 WHERE l.state = 'unknown' AND l.id IS NOT NULL
   AND NOT EXISTS (SELECT FROM soak.log o WHERE o.id = l.id AND o.state = 'kept')
 GROUP BY client, txn HAVING count(r.id) NOT IN (0, count(*));

SELECT 'a limit was passed', policy_id, scope, subject, measure, period, start, amount, max(used)
  FROM step WHERE used > amount GROUP BY 1, 2, 3, 4, 5, 6, 7, 8;

SELECT 'granted outside of what was asked', id, tokens_requested, min_tokens, tokens_cost
  FROM ledger
 WHERE kind = 'authorize' AND result = 'allowed'
   AND NOT coalesce(tokens_cost BETWEEN coalesce(min_tokens, tokens_requested) AND tokens_requested, tokens_requested IS NULL);

SELECT 'charged though refused', id FROM ledger WHERE result <> 'allowed' AND tokens_cost <> 0;

SELECT 'a request admitted twice', agent_id, kind, request_id, count(*)
  FROM ledger WHERE request_id IS NOT NULL AND result = 'allowed' GROUP BY 1, 2, 3, 4 HAVING count(*) > 1;

SELECT 'settled twice', settles, count(*) FROM ledger WHERE settles IS NOT NULL GROUP BY 1, 2 HAVING count(*) > 1;

SELECT 'settled wrongly', u.id, u.tokens_cost
  FROM ledger u LEFT JOIN ledger a ON a.id = u.settles
 WHERE u.kind = 'usage'
   AND (a.tokens_cost = u.tokens_released AND u.tokens_cost = u.tokens_requested - a.tokens_cost
        AND (a.agent_id, a.user_id) = (u.agent_id, u.user_id) AND a.tenant_id IS NOT DISTINCT FROM u.tenant_id) IS NOT TRUE;

SELECT 'a rate per hour was passed', u.subject, u.start, u.calls
  FROM usage u JOIN kavach.permission p ON u.scope = 'permission' AND p.permission_id::text = u.subject
 WHERE u.calls > (p.constraints ->> 'max_calls_per_hour')::bigint;

-- Of calls by themselves: at some moment while they were under way it did not fit.  A commit may
-- become visible some time after its timestamp.
WITH refused AS (
  SELECT r.id, r.ts, r.policy_id, r.agent_id, r.user_id, r.tenant_id, r.tokens_requested,
         to_timestamp(l.sent) - interval '500 ms' AS sent, to_timestamp(l.received) AS received
    FROM soak.log l JOIN ledger r USING (id)
   WHERE l.alone AND l.state = 'kept' AND l.code = 'budget_exceeded'
   LIMIT 3000)
SELECT 'refused though it fitted', r.*, b.measure, b.period, b.amount, u.used
  FROM refused r
  JOIN bound b USING (policy_id)
 CROSS JOIN LATERAL (SELECT CASE b.period WHEN 'total' THEN '-infinity' ELSE date_trunc(b.period, r.ts) END) AS w (start)
 CROSS JOIN LATERAL (
   SELECT coalesce(max(s.used), 0) AS used
     FROM step s
    WHERE s.policy_id = b.policy_id AND s.subject IS NOT DISTINCT FROM b.subject
      AND (s.measure, s.period, s.start) = (b.measure, b.period, w.start)
      AND s.committed <= r.received
      AND s.committed >= coalesce((
            SELECT max(before.committed) FROM step before
             WHERE before.policy_id = b.policy_id AND before.subject IS NOT DISTINCT FROM b.subject
               AND (before.measure, before.period, before.start) = (b.measure, b.period, w.start)
               AND before.committed < r.sent), '-infinity')) AS u
 WHERE b.subject IS NOT DISTINCT FROM
       CASE b.scope WHEN 'agent' THEN r.agent_id WHEN 'user' THEN r.user_id WHEN 'tenant' THEN r.tenant_id END
   AND NOT EXISTS (
         SELECT FROM kavach.budget_limit l WHERE l.policy_id = b.policy_id AND (l.measure, l.period) <> (b.measure, b.period))
   AND u.used + CASE b.measure WHEN 'tokens' THEN r.tokens_requested ELSE 1 END <= b.amount;

-- With unit costs and nothing undone, whoever was refused has a limit that is exactly full.
SELECT 'refused, and every limit has room', r.agent_id, date_trunc('hour', r.ts), count(*)
  FROM ledger r
 WHERE :unit AND r.code IN ('budget_exceeded', 'budget_pending')
   AND NOT EXISTS (
         SELECT FROM bound b
           JOIN usage u ON u.scope = b.scope AND u.period = b.period AND u.subject IS NOT DISTINCT FROM b.subject
            AND u.start = CASE b.period WHEN 'total' THEN '-infinity' ELSE date_trunc(b.period, r.ts) END
          WHERE b.amount = CASE b.measure WHEN 'tokens' THEN u.tokens ELSE u.calls END
            AND b.subject IS NOT DISTINCT FROM
                CASE b.scope WHEN 'agent' THEN r.agent_id WHEN 'user' THEN r.user_id WHEN 'tenant' THEN r.tenant_id END)
 GROUP BY 1, 2, 3;

SELECT 'an error that nobody expects', code, agent, count(*)
  FROM soak.log
 WHERE state = 'error'
   AND code NOT IN ('57014', '57P01', '57P02', '57P03', '53200', '40P01', '40001', '55P03', '08006')
 GROUP BY 1, 2, 3;

-- ---- the counters ----

SELECT * FROM pg_temp.wrong_counters('as the load left them');

-- ---- what closed batches add up to ----

SELECT 'closed batches add up to something else', *
  FROM (SELECT scope, subject, period, start, sum(tokens) AS tokens, sum(calls) AS calls
          FROM (SELECT s.scope, coalesce(s.subject, '') AS subject, w.period, w.start, coalesce(r.tokens_cost, 0) AS tokens, (r.kind = 'authorize')::int AS calls
                  FROM ledger r
                  JOIN kavach.tail t ON r.batch <= t.high AND r.batch <> ALL (t.open)
                 CROSS JOIN LATERAL (VALUES ('agent', agent_id), ('user', user_id), ('tenant', tenant_id), ('all', NULL)) AS s (scope, subject)
                 CROSS JOIN LATERAL (VALUES ('hour', date_trunc('hour', counts_at)), ('day', date_trunc('day', counts_at)),
                                            ('month', date_trunc('month', counts_at)), ('total', '-infinity')) AS w (period, start)
                 WHERE r.result = 'allowed' AND (s.scope = 'all' OR s.subject IS NOT NULL)
                 UNION ALL
                SELECT scope, subject, period, start, -tokens, -calls FROM kavach.usage_scope) u
         GROUP BY 1, 2, 3, 4) d
 WHERE (tokens, calls) <> (0, 0);

-- ---- what is left is granted, and no more ----

-- Asks for all that is left to each agent at each instant, then for one more, and undoes both.
CREATE FUNCTION pg_temp.ask(agent text, cost bigint) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
  answer text;
BEGIN
  SELECT code INTO answer FROM kavach_authorize(agent, 'run', 'tool:x', tokens_cost => cost);
  RAISE division_by_zero;
EXCEPTION WHEN division_by_zero THEN
  RETURN answer;
END
$$;

CREATE FUNCTION pg_temp.wrong_answers()
RETURNS TABLE (fault text, agent text, clock timestamptz, tokens bigint, calls bigint, all_of_it text, one_more text)
LANGUAGE plpgsql
AS $$
DECLARE
  one record;
BEGIN
  FOR one IN
    SELECT a.agent_id, t.clock,
           coalesce(min(b.amount - coalesce(u.tokens, 0)) FILTER (WHERE b.measure = 'tokens'), 1000000) AS tokens,
           coalesce(min(b.amount - coalesce(u.calls, 0)) FILTER (WHERE b.measure = 'calls'), 1000000) AS calls
      FROM kavach.agent a
     CROSS JOIN (SELECT DISTINCT ON (date_trunc('hour', ts)) ts FROM ledger) AS t (clock)
      LEFT JOIN bound b ON b.subject IS NOT DISTINCT FROM
                CASE b.scope WHEN 'agent' THEN a.agent_id WHEN 'user' THEN a.user_id WHEN 'tenant' THEN a.tenant_id END
                AND (b.scope = 'all' OR b.subject IS NOT NULL)
      LEFT JOIN usage u ON u.scope = b.scope AND u.period = b.period AND u.subject IS NOT DISTINCT FROM b.subject
            AND u.start = CASE b.period WHEN 'total' THEN '-infinity' ELSE date_trunc(b.period, t.clock) END
     WHERE a.status = 'active'
     GROUP BY 1, 2
  LOOP
    PERFORM set_config('kavach.clock', one.clock::text, true);
    agent := one.agent_id;
    clock := one.clock;
    tokens := one.tokens;
    calls := one.calls;
    all_of_it := pg_temp.ask(one.agent_id, greatest(one.tokens, 1));
    one_more := pg_temp.ask(one.agent_id, greatest(one.tokens, 0) + 1);
    IF all_of_it = 'rate_limited' THEN
      CONTINUE;
    END IF;
    IF (all_of_it IN ('allowed', 'budget_warning')) <> (one.tokens > 0 AND one.calls > 0)
       OR (one_more IN ('allowed', 'budget_warning')) <> (one.tokens >= 1000000 AND one.calls > 0) THEN
      fault := 'an answer that does not follow from the ledger';
      RETURN NEXT;
    END IF;
  END LOOP;
  PERFORM set_config('kavach.clock', '', true);
END
$$;
SELECT * FROM pg_temp.wrong_answers();
SELECT * FROM pg_temp.wrong_counters('read again');
SELECT 'no counter is in memory: there is nothing to compare'
 WHERE NOT EXISTS (SELECT FROM kavach.counters WHERE (tokens_used, calls_used) <> (0, 0));

-- ---- what the round was like ----

\o :report
SELECT format('%s calls of %s transactions acknowledged, %s undone, %s unknown; %s admitted, %s settled; %s of %s limits reached',
              count(*) FILTER (WHERE state = 'kept'), count(DISTINCT (client, txn)) FILTER (WHERE state = 'kept'),
              count(*) FILTER (WHERE state = 'undone'), count(*) FILTER (WHERE state = 'unknown'),
              (SELECT count(*) FROM ledger WHERE kind = 'authorize' AND result = 'allowed'),
              (SELECT count(*) FROM ledger WHERE kind = 'usage'),
              (SELECT count(DISTINCT policy_id) FROM ledger WHERE code = 'budget_exceeded'),
              (SELECT count(*) FROM kavach.budget_policy WHERE action <> 'warn'))
  FROM soak.log;
SELECT string_agg(format('%s %s', n, code), ', ' ORDER BY n DESC)
  FROM (SELECT code, count(*) AS n FROM soak.log WHERE state = 'error' GROUP BY code) AS e;
SELECT DISTINCT format('reached: %s %s per %s', p.scope, l.measure, l.period)
  FROM kavach.budget_policy p JOIN kavach.budget_limit l USING (policy_id)
 WHERE p.policy_id IN (SELECT policy_id FROM ledger WHERE code = 'budget_exceeded') AND p.action <> 'warn';
SELECT format('%s loads, %s evictions, %s refusals; %s counters', loads, evictions, refusals, (SELECT count(*) FROM kavach.counters))
  FROM kavach.counter_stats;
\o
