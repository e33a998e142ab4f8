-- What the replayed trace cost, and whether the ledger agrees with the file.
\set QUIET on
\pset footer off
SELECT (min(left(ts, 26)) || 'Z')::timestamptz AS since,
       (max(left(ts, 26)) || 'Z')::timestamptz + interval '1 microsecond' AS until
  FROM demo.call \gset
\echo
\echo '--- Spend by agent -------------------------------------------------------------'
\echo
SELECT agent_id, calls, denied, tokens_cost
  FROM kavach_cost_by_agent(:'since', :'until') JOIN demo.agent USING (agent_id)
 ORDER BY agent_id;

\echo '--- Budgets, at the end of the trace -------------------------------------------'
\echo
SET kavach.clock = :'until';
SELECT scope, subject, measure, period, used, amount, action, status
  FROM kavach.budget_status WHERE subject IN (SELECT subject FROM demo.budget)
 ORDER BY scope, subject;
RESET kavach.clock;

\echo '--- Spend by five minutes ------------------------------------------------------'
\echo
SELECT to_char(five_minutes AT TIME ZONE 'UTC', 'DD Mon HH24:MI') AS "from (UTC)", tokens_cost,
       repeat('#', (tokens_cost * 40 / max(tokens_cost) OVER ())::int) AS bar
  FROM (SELECT date_bin('5 minutes', ts, '2000-01-01Z') AS five_minutes, sum(tokens_cost) AS tokens_cost
          FROM kavach.ledger JOIN demo.agent USING (agent_id) GROUP BY 1) AS spent
 ORDER BY five_minutes;

COPY (SELECT * FROM kavach_export(:'since', :'until')) TO :'csv' (FORMAT csv, HEADER);
\echo 'The ledger as CSV:' :csv
\echo
\echo '--- Spend by user, by kavach and by a computation over the file alone ----------'
\echo
CREATE TABLE demo.compared AS
SELECT user_id, c.calls, c.denied, c.tokens_cost,
       e.calls AS file_calls, e.denied AS file_denied, e.tokens_cost AS file_tokens_cost,
       (c.calls, c.denied, c.tokens_cost) IS NOT DISTINCT FROM (e.calls, e.denied, e.tokens_cost::numeric) AS equal
  FROM kavach_cost_by_user(:'since', :'until') AS c RIGHT JOIN demo.expected AS e USING (user_id);
SELECT * FROM demo.compared ORDER BY user_id;

SELECT coalesce(bool_and(equal), false) AS equal, sum(calls) AS calls, sum(denied) AS denied,
       sum(tokens_cost) AS tokens_cost
  FROM demo.compared \gset
\if :equal
  \echo 'Equal:' :calls 'calls,' :denied 'of them refused, and' :tokens_cost 'tokens, in the ledger as in the file.'
\else
  DO $$BEGIN RAISE EXCEPTION 'ledger and file differ'; END$$;
\endif
