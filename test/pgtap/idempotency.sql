-- idempotency.sql: a repeated request_id decides and charges once.
BEGIN;
SELECT plan(38);
SET LOCAL timezone = 'UTC';
SET LOCAL client_min_messages = error;
SET LOCAL kavach.clock = '2026-01-30 12:00:00+00';

SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_b', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_total": 100, "max_calls_total": 20}') AS p \gset
SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_total": 1}', action => 'warn') AS warn \gset

SELECT audit_id AS a, reason, row(allowed, code, policy_id, tokens_granted, tokens_remaining, calls_remaining)::text AS answer
  FROM kavach_authorize('agt_a', 'run', 'x', 10, '{"k": 1}', '10.0.0.1', 'r1', '{"m": 1}') \gset
SELECT is(:'answer'::text, format('(t,budget_warning,%s,10,90,19)', :'warn'), 'the first');
SELECT is(row(audit_id, allowed, code, reason, policy_id, tokens_granted, tokens_remaining, calls_remaining)::text,
          row(:'a', true, 'budget_warning', :'reason', :'warn', 10, 90, 19)::text, 'the same again: the first answer')
  FROM kavach_authorize('agt_a', 'run', 'x', 10, '{"k": 1}', '10.0.0.1', 'r1', '{"m": 1}');
SELECT is(row(action, http_status)::text, '(warn,200)', 'with the action of its policy') FROM kavach_authorize('agt_a', 'run', 'x', 10, '{"k": 1}', request_id => 'r1');
SELECT is(audit_id, :'a', 'ip and metadata may differ') FROM kavach_authorize('agt_a', 'run', 'x', 10, '{"k": 1}', '10.9.9.9', 'r1', '{"m": 2}');
SELECT is(audit_id, :'a', 'or be absent') FROM kavach_authorize('agt_a', 'run', 'x', 10, '{"k": 1}', request_id => 'r1');
SELECT is(audit_id, :'a', 'arguments that are equal JSON are the same') FROM kavach_authorize('agt_a', 'run', 'x', 10, '{ "k":1.0 }', request_id => 'r1');
SELECT is(row(count(*), sum(tokens_cost))::text, '(1,10)', 'one row, one charge') FROM kavach.audit_log;

SELECT throws_ok(format('SELECT kavach_authorize(%s)', args), 'KV001', NULL, what)
  FROM (VALUES
    ($$'agt_a', 'stop', 'x', 10, '{"k": 1}', request_id => 'r1'$$, 'another action: an error'),
    ($$'agt_a', 'run', 'y', 10, '{"k": 1}', request_id => 'r1'$$, 'another resource: an error'),
    ($$'agt_a', 'run', 'x', 11, '{"k": 1}', request_id => 'r1'$$, 'another cost: an error'),
    ($$'agt_a', 'run', 'x', NULL, '{"k": 1}', request_id => 'r1'$$, 'no cost: an error'),
    ($$'agt_a', 'run', 'x', 10, '{"k": 2}', request_id => 'r1'$$, 'other arguments: an error'),
    ($$'agt_a', 'run', 'x', 10, NULL, request_id => 'r1'$$, 'no arguments: an error'),
    ($$'agt_a', 'run', 'x', 10, '{"k": 1}', request_id => 'r1', min_tokens => 10$$, 'min_tokens: an error')
  ) AS t (args, what);
SELECT is(row(count(*), sum(tokens_cost))::text, '(1,10)', 'and nothing is written') FROM kavach.audit_log;

-- Per agent, and each verb for itself.
SELECT isnt(audit_id, :'a', 'another agent''s request_id is its own') FROM kavach_authorize('agt_b', 'stop', 'y', 1, request_id => 'r1');
SELECT is(tokens_charged, -4::bigint, 'record_usage settles by it') FROM kavach_record_usage('agt_a', 6, request_id => 'r1');
SELECT is(row(audit_id, code, tokens_granted, tokens_remaining, calls_remaining)::text, format('(%s,budget_warning,10,93,18)', :'a'),
          'after that, authorize still gives its first answer, with remaining figures as of now')
  FROM kavach_authorize('agt_a', 'run', 'x', 10, '{"k": 1}', request_id => 'r1');
SELECT kavach_drop_policy(:'warn');
SELECT is(code, 'recorded', 'a key that record_usage took') FROM kavach_record_usage('agt_b', 1, request_id => 'u1');
SELECT is(row(code, tokens_granted)::text, '(allowed,5)', 'is free for authorize') FROM kavach_authorize('agt_b', 'run', 'x', 5, request_id => 'u1');

-- The answer of a partial grant.
SELECT audit_id AS g FROM kavach_authorize('agt_a', 'run', 'x', 1000, request_id => 'g1', min_tokens => 50) \gset
SELECT is(row(audit_id, allowed, tokens_granted, tokens_remaining)::text, format('(%s,t,87,0)', :'g'), 'a grant is given again, though nothing is left')
  FROM kavach_authorize('agt_a', 'run', 'x', 1000, request_id => 'g1', min_tokens => 50);

-- Refused calls are decided anew, with other content if need be.
SELECT audit_id AS r FROM kavach_authorize('agt_a', 'run', 'x', 10, request_id => 'r2') \gset
SELECT is(code, 'budget_exceeded', 'a refusal') FROM kavach.audit_log WHERE id = :'r';
SELECT is(row(code, audit_id = :'r')::text, '(budget_exceeded,f)', 'again: decided anew, a row of its own') FROM kavach_authorize('agt_a', 'run', 'x', 10, request_id => 'r2');
SELECT kavach_update_policy(:'p', '{"max_tokens_cost_total": 200}');
SELECT is(row(code, tokens_remaining)::text, '(allowed,80)', 'admitted once it fits') FROM kavach_authorize('agt_a', 'run', 'y', 20, request_id => 'r2');
SELECT is(row(code, tokens_remaining)::text, '(allowed,80)', 'and only once') FROM kavach_authorize('agt_a', 'run', 'y', 20, request_id => 'r2');

-- The agent is looked at before the retry, the permission after it.
SELECT kavach_revoke_permission(permission_id) FROM kavach.permission WHERE agent_id = 'agt_a';
SELECT is(audit_id, :'a', 'a permission that is gone since does not matter to a retry') FROM kavach_authorize('agt_a', 'run', 'x', 10, '{"k": 1}', request_id => 'r1');
SELECT kavach_revoke_agent('agt_a');
SELECT is(row(code, allowed)::text, '(agent_revoked,f)', 'an agent revoked since is refused') FROM kavach_authorize('agt_a', 'run', 'x', 10, '{"k": 1}', request_id => 'r1');
SELECT kavach_restore_agent('agt_a'), kavach_grant_permission('agt_a', '*', '{*}');
SELECT is(audit_id, :'a', 'and has its answer again when restored') FROM kavach_authorize('agt_a', 'run', 'x', 10, '{"k": 1}', request_id => 'r1');

-- Across the turn of the month, as long as request_retention reaches.
SET LOCAL kavach.clock = '2026-02-05 12:00:00+00';
SELECT is(audit_id, :'a', 'six days later, in another month: the first answer') FROM kavach_authorize('agt_a', 'run', 'x', 10, '{"k": 1}', request_id => 'r1');
SELECT is(tokens_charged, -4::bigint, 'usage too') FROM kavach_record_usage('agt_a', 6, request_id => 'r1');
SELECT throws_ok($$SELECT kavach_authorize('agt_a', 'run', 'x', 11, '{"k": 1}', request_id => 'r1')$$, 'KV001', NULL, 'other content is still an error');
SELECT audit_id AS late FROM kavach_authorize('agt_a', 'run', 'x', 1, request_id => 'late') \gset
SET LOCAL kavach.clock = '2026-02-28 12:00:00+00';
SELECT is(audit_id, :'late', 'the unique index of a month and the lookup agree') FROM kavach_authorize('agt_a', 'run', 'x', 1, request_id => 'late');
SELECT isnt(audit_id, :'a', 'past retention, and in another month, the key is forgotten') FROM kavach_authorize('agt_a', 'run', 'x', 11, request_id => 'r1');
SET LOCAL kavach.request_retention = '60d';
SELECT is(audit_id, :'g', 'a longer retention remembers longer') FROM kavach_authorize('agt_a', 'run', 'x', 1000, request_id => 'g1', min_tokens => 50);
SELECT throws_ok($$SET kavach.request_retention = '6d'$$, '22023', NULL, 'less than seven days is refused');
-- By audit_id it is settled however old it is.
RESET kavach.request_retention;
SET LOCAL kavach.clock = '2026-09-05 12:00:00+00';
SELECT is(row(tokens_charged, code)::text, '(-57,recorded)', 'by audit_id an authorization is settled however old it is') FROM kavach_record_usage('agt_a', 30, :'g');
SELECT is(tokens_charged, -57::bigint, 'once') FROM kavach_record_usage('agt_a', 30, :'g');

-- Without request_id nothing is remembered.
SELECT is(count(DISTINCT (kavach_authorize('agt_a', 'run', 'x')).audit_id), 2::bigint, 'two calls without request_id are two') FROM generate_series(1, 2);

SELECT * FROM finish();
ROLLBACK;
