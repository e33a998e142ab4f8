-- An agent is authorized, its usage is settled, and its budget refuses.
\set QUIET on
\pset footer off
SET client_min_messages = warning;
CREATE EXTENSION kavach;

\echo
\echo '--- An agent, what it may do, and a budget -------------------------------------'
\echo
\set ECHO queries
SELECT kavach_create_agent('agt_writer', user_id => 'ana', tenant_id => 'acme',
  permissions => '[{"resource": "mcp:openai:*", "actions": ["execute"]}]');

SELECT kavach_create_policy(user_id => 'ana',
  limits => '{"max_tokens_cost_per_day": 1000}') AS policy_id;

\set ECHO none
\echo '--- Ask before the call: it is decided, charged and recorded -------------------'
\echo
\set ECHO queries
SELECT allowed, code, audit_id, tokens_remaining
  FROM kavach_authorize('agt_writer', 'execute', 'mcp:openai:chat',
                        tokens_cost => 400, request_id => 'call-1');

\set ECHO none
\echo '--- Settle after it: the estimate of 400 gives way to the 250 really spent -----'
\echo
\set ECHO queries
SELECT code, tokens_charged, tokens_remaining
  FROM kavach_record_usage('agt_writer', 250, request_id => 'call-1');

\set ECHO none
\echo '--- A call that does not fit is refused, with the reason -----------------------'
\echo
\x on
\pset format unaligned
\pset fieldsep ': '
\set ECHO queries
SELECT allowed, code, reason, retry_at
  FROM kavach_authorize('agt_writer', 'execute', 'mcp:openai:chat', tokens_cost => 900);

\set ECHO none
\x off
\pset format aligned
\echo '--- One that can live with less gets what is left ------------------------------'
\echo
\set ECHO queries
SELECT allowed, code, tokens_granted, tokens_remaining
  FROM kavach_authorize('agt_writer', 'execute', 'mcp:openai:chat',
                        tokens_cost => 900, min_tokens => 100);

\set ECHO none
\echo '--- And every decision is in the ledger ----------------------------------------'
\echo
\set ECHO queries
SELECT kind, result, code, tokens_requested, tokens_released, tokens_cost
  FROM kavach_query_audit('agt_writer') ORDER BY id;

\set ECHO none
