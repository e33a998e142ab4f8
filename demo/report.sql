-- What the sample history cost, read the ways an administrator would.
\set QUIET on
\pset footer off
\echo
\echo '--- Spend by agent -------------------------------------------------------------'
\echo
\set ECHO queries
SELECT agent_id, calls, denied, tokens_cost
  FROM kavach_cost_by_agent('2026-06-01Z', '2026-07-01Z') ORDER BY tokens_cost DESC;

\set ECHO none
\echo '--- Spend by day ---------------------------------------------------------------'
\echo
\set ECHO queries
SELECT to_char(day, 'Dy DD') AS day, calls, tokens_cost,
       repeat('#', (tokens_cost * 40 / max(tokens_cost) OVER ())::int) AS bar
  FROM kavach_cost_by_day(NULL, '2026-06-01Z', '2026-07-01Z') AS c ORDER BY c.day;

\set ECHO none
\echo '--- The bill for June ----------------------------------------------------------'
\echo
\set ECHO queries
SELECT tenant_id, user_id, calls, denied, tokens_cost
  FROM kavach_billing_report(2026, 6) ORDER BY tenant_id, user_id;

\set ECHO none
\echo '--- The ledger as CSV ----------------------------------------------------------'
\echo
COPY (SELECT * FROM kavach_export('2026-06-01Z', '2026-07-01Z'))
  TO :'csv' (FORMAT csv, HEADER);
\echo 'COPY (SELECT * FROM kavach_export(\'2026-06-01Z\', \'2026-07-01Z\'))'
\echo '  TO \'':csv'\' (FORMAT csv, HEADER);'
\echo
