-- codes.sql: every code of the table, in the answer and in the ledger, with a reason that helps.
BEGIN;
SELECT plan(25);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';
-- The row of an answer, as a snapshot later than the call's sees it.
CREATE FUNCTION pg_temp.row_of(uuid) RETURNS SETOF kavach.audit_log LANGUAGE sql AS 'SELECT * FROM kavach.audit_log WHERE id = $1';

SELECT kavach_create_agent('agt_ok', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_warned', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_spent', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_slowed', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_out', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_gone', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"]}]'),
       kavach_create_agent('agt_old', 'ann', 'acme', expires_at => '2026-03-10 11:00Z'),
       kavach_create_agent('agt_bare', 'ann', 'acme'),
       kavach_create_agent('agt_arg', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"allowed_arg_patterns": ["a"]}}]'),
       kavach_create_agent('agt_late', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"time_window": {"start": "01:00", "end": "02:00"}}}]'),
       kavach_create_agent('agt_far', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"ip_allowlist": ["10.0.0.0/8"]}}]'),
       kavach_create_agent('agt_fast', 'ann', 'acme', permissions => '[{"resource": "*", "actions": ["*"], "constraints": {"max_calls_per_hour": 1}}]');
SELECT kavach_create_policy(agent_id => 'agt_warned', limits => '{"max_tokens_cost_total": 1}', action => 'warn') AS warn,
       kavach_create_policy(agent_id => 'agt_spent', limits => '{"max_tokens_cost_total": 1}', action => 'block') AS block,
       kavach_create_policy(agent_id => 'agt_slowed', limits => '{"max_tokens_cost_per_hour": 1}', action => 'throttle') AS throttle,
       kavach_create_policy(agent_id => 'agt_out', limits => '{"max_tokens_cost_total": 1}', action => 'revoke') AS revoke \gset
SELECT kavach_revoke_agent('agt_gone');
SELECT code FROM kavach_authorize('agt_fast', 'run', 'tool');

CREATE TEMP TABLE answer AS
  SELECT t.agent_id AS asked, a.* FROM (VALUES
    ('agt_ok'), ('agt_warned'), ('agt_spent'), ('agt_slowed'), ('agt_out'), ('agt_ghost'), ('agt_gone'), ('agt_old'),
    ('agt_bare'), ('agt_arg'), ('agt_late'), ('agt_far'), ('agt_fast')) AS t (agent_id),
    kavach_authorize(t.agent_id, 'run', 'tool', tokens_cost => 2) AS a;

SELECT results_eq(
  $$SELECT asked, allowed, code FROM answer ORDER BY asked COLLATE "C"$$,
  $$VALUES ('agt_arg', false, 'argument_not_allowed'), ('agt_bare', false, 'permission_denied'), ('agt_far', false, 'ip_not_allowed'),
           ('agt_fast', false, 'rate_limited'), ('agt_ghost', false, 'agent_not_found'), ('agt_gone', false, 'agent_revoked'),
           ('agt_late', false, 'outside_time_window'), ('agt_ok', true, 'allowed'), ('agt_old', false, 'agent_expired'),
           ('agt_out', false, 'budget_exceeded'), ('agt_slowed', false, 'budget_exceeded'), ('agt_spent', false, 'budget_exceeded'),
           ('agt_warned', true, 'budget_warning')$$,
  'each call answers with its code');
SELECT results_eq(
  $$SELECT l.agent_id, l.result, l.code, l.tokens_cost FROM answer a, pg_temp.row_of(a.audit_id) AS l
     ORDER BY l.agent_id COLLATE "C"$$,
  $$VALUES ('agt_arg', 'denied', 'argument_not_allowed', 0::bigint), ('agt_bare', 'denied', 'permission_denied', 0),
           ('agt_far', 'denied', 'ip_not_allowed', 0), ('agt_fast', 'rate_limited', 'rate_limited', 0),
           ('agt_ghost', 'denied', 'agent_not_found', 0), ('agt_gone', 'denied', 'agent_revoked', 0),
           ('agt_late', 'denied', 'outside_time_window', 0), ('agt_ok', 'allowed', 'allowed', 2),
           ('agt_old', 'denied', 'agent_expired', 0), ('agt_out', 'denied', 'budget_exceeded', 0),
           ('agt_slowed', 'rate_limited', 'budget_exceeded', 0), ('agt_spent', 'denied', 'budget_exceeded', 0),
           ('agt_warned', 'allowed', 'budget_warning', 2)$$,
  'and is in the ledger with its result, refused ones charging nothing');
SELECT results_eq(
  $$SELECT asked, policy_id FROM answer WHERE policy_id IS NOT NULL ORDER BY asked COLLATE "C"$$,
  format($$VALUES ('agt_out', %L), ('agt_slowed', %L), ('agt_spent', %L), ('agt_warned', %L)$$,
         :'revoke', :'throttle', :'block', :'warn'),
  'policy_id names the policy that decided, where one did');
SELECT is(count(*), 0::bigint, 'answer and ledger row agree')
  FROM answer a LEFT JOIN kavach.audit_log l ON l.id = a.audit_id
 WHERE (l.code, l.reason, l.policy_id, l.agent_id, l.result = 'allowed')
       IS DISTINCT FROM (a.code, a.reason, a.policy_id, a.asked, a.allowed);
SELECT is(count(*), 0::bigint, 'all but a plain yes have a reason') FROM answer WHERE code <> 'allowed' AND coalesce(reason, '') = '';
SELECT is(count(*), 0::bigint, 'only the admitted are granted tokens') FROM answer WHERE allowed <> (coalesce(tokens_granted, 0) = 2);
SELECT results_eq(
  $$SELECT asked, retry_at FROM answer WHERE retry_at IS NOT NULL ORDER BY 1$$,
  $$VALUES ('agt_fast', timestamptz '2026-03-10 13:05Z'), ('agt_late', '2026-03-11 01:00Z')$$,
  'retry_at where waiting helps (a cost above the whole limit never fits)');
SELECT is(count(*), 0::bigint, 'refused before the budgets were looked at: no remaining figures')
  FROM answer WHERE asked NOT IN ('agt_ok', 'agt_warned', 'agt_spent', 'agt_slowed', 'agt_out')
   AND (tokens_remaining IS NOT NULL OR calls_remaining IS NOT NULL AND asked <> 'agt_fast');
SELECT is(calls_remaining, 0::bigint, 'but that a rate per hour has none left') FROM answer WHERE asked = 'agt_fast';
SELECT results_eq(
  $$SELECT asked, action, http_status FROM answer ORDER BY asked COLLATE "C"$$,
  $$VALUES ('agt_arg', NULL, 403), ('agt_bare', NULL, 403), ('agt_far', NULL, 403), ('agt_fast', NULL, 429), ('agt_ghost', NULL, 401),
           ('agt_gone', NULL, 403), ('agt_late', NULL, 403), ('agt_ok', NULL, 200), ('agt_old', NULL, 403), ('agt_out', 'revoke', 403),
           ('agt_slowed', 'throttle', 429), ('agt_spent', 'block', 402), ('agt_warned', 'warn', 200)$$,
  'action is that of the policy which decided, http_status what a gateway answers');
SELECT matches(reason, 'the agent is revoked now', 'who has just been revoked is told') FROM answer WHERE asked = 'agt_out';
SELECT is(tokens_remaining, expected, asked || ': tokens_remaining')
  FROM (VALUES ('agt_ok', NULL::bigint), ('agt_warned', NULL), ('agt_spent', 1), ('agt_slowed', 1), ('agt_out', 1)) AS t (agent, expected)
  JOIN answer ON asked = agent;

-- Reasons name the next step.
SELECT matches(reason, 'kavach_create_agent', 'agent_not_found names the call to make') FROM answer WHERE asked = 'agt_ghost';
SELECT matches(reason, 'agt_ghost', 'and the agent') FROM answer WHERE asked = 'agt_ghost';
SELECT matches(reason, 'kavach_grant_permission', 'no permission at all: the call to make') FROM answer WHERE asked = 'agt_bare';
-- What they name can be pasted, whatever it is called.
SELECT kavach_create_agent('agt_o''neil', 'ann', 'acme');
SELECT matches(reason, $$kavach_create_agent\('agt_d''arc'$$, 'an agent with a quote') FROM kavach_authorize('agt_d''arc', 'run', 'x');
SELECT matches(reason, $$kavach_grant_permission\('agt_o''neil', 'it''s', ARRAY\['do''nt'\]\)$$, 'a resource and an action with one') FROM kavach_authorize('agt_o''neil', 'do''nt', 'it''s');
SELECT is(status, 'revoked', 'the revoke policy has revoked the caller') FROM kavach.agent WHERE agent_id = 'agt_out';
SELECT results_eq(
  $$SELECT agent_id, user_id, tenant_id FROM kavach.audit_log WHERE code = 'agent_not_found' AND agent_id = 'agt_ghost'$$,
  $$VALUES ('agt_ghost', NULL::text, NULL::text)$$, 'an unknown agent has no owner');
SELECT is(count(*), 0::bigint, 'all the others have theirs')
  FROM kavach.audit_log WHERE code <> 'agent_not_found' AND (user_id, tenant_id) IS DISTINCT FROM ('ann', 'acme');
SELECT is((SELECT array_agg(code) FROM (SELECT (kavach_authorize('agt_out', 'run', 'tool')).code) c), '{agent_revoked}',
          'after a revoke policy: agent_revoked');

SELECT * FROM finish();
ROLLBACK;
