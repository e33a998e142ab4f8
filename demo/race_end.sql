-- The race's result, from the ledger; the script fails if the budget was not kept.
\set QUIET on
\pset format unaligned
\pset tuples_only on
SELECT format('%s calls, %s admitted, %s refused', count(*),
              count(*) FILTER (WHERE result = 'allowed'),
              count(*) FILTER (WHERE result <> 'allowed'))
  FROM kavach.ledger
 WHERE tenant_id = 'race';

SELECT sum(l.tokens_cost) AS spent, b.amount, sum(l.tokens_cost) = b.amount AS exact
  FROM kavach.ledger AS l, kavach.budget_status AS b
 WHERE l.tenant_id = 'race' AND b.scope = 'tenant' AND b.subject = 'race'
 GROUP BY b.amount \gset
SELECT format('%s of %s, overspent %s', :spent, :amount, greatest(:spent - :amount, 0));
\echo
\if :exact
\else
  DO $$BEGIN RAISE EXCEPTION 'the race did not spend its budget exactly'; END$$;
\endif
