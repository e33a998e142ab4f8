-- rows.sql: rows of this month into either ledger, in order of time.  psql
-- variables: agents, rows.  Counters in memory do not know of them.
\set QUIET on
CREATE TEMPORARY TABLE new_row AS
SELECT bench.uuid7(ts) AS id, ts, 1 + i % :agents AS n
  FROM (SELECT i, m + (clock_timestamp() - m) * (i / (1.0 + :rows)) AS ts
          FROM generate_series(1, :rows) i, date_trunc('month', clock_timestamp(), 'UTC') m) r;

INSERT INTO kavach.audit_log
  (id, ts, kind, agent_id, user_id, tenant_id, action, resource, result, code,
   permission_id, tokens_requested, tokens_cost)
SELECT id, ts, 'authorize', 4000000000 + n, 5000000000 + n % 100, 'tenant_1',
       'execute', 'mcp:openai:chat', 'allowed', 'allowed', n, 150, 150
  FROM new_row;
INSERT INTO bench.audit_log
  (id, ts, kind, agent_id, user_id, tenant_id, action, resource, result, code,
   permission_id, tokens_requested, tokens_cost)
SELECT id, ts, 'authorize', 4000000000 + n, 5000000000 + n % 100, 'tenant_1',
       'execute', 'mcp:openai:chat', 'allowed', 'allowed', n, 150, 150
  FROM new_row;
