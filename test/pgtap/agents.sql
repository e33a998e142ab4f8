-- agents.sql: agents are created, changed, revoked and restored, and the ledger keeps their history.
BEGIN;
SELECT plan(31);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';

SELECT is(kavach_create_agent('agt_one', 'ann', 'acme', 'Mail', '[{"resource": "*", "actions": ["*"]}]',
                              '2027-01-01Z', '{"team": "x"}'),
          'agt_one', 'create_agent returns the id it was given');
SELECT results_eq(
  $$SELECT user_id, tenant_id, name, status, expires_at, metadata, created_at FROM kavach.agent WHERE agent_id = 'agt_one'$$,
  $$VALUES ('ann', 'acme', 'Mail', 'active', timestamptz '2027-01-01Z', '{"team": "x"}'::jsonb, timestamptz '2026-03-10 12:00Z')$$,
  'and stores all it was told');
SELECT results_eq(
  $$SELECT resource, actions, constraints FROM kavach.permission WHERE agent_id = 'agt_one'$$,
  $$VALUES ('*', '{*}'::text[], '{}'::jsonb)$$,
  'with its permissions');

SELECT kavach_create_agent(user_id => 'bob') AS made \gset
SELECT matches(:'made'::text, '^agt_[0-9A-Za-z_-]{8,}$', 'an agent_id is made where none is given');
SELECT results_eq(
  format($$SELECT user_id, tenant_id, name, status, expires_at, metadata FROM kavach.agent WHERE agent_id = %L$$, :'made'),
  $$VALUES ('bob', NULL::text, NULL::text, 'active', NULL::timestamptz, '{}'::jsonb)$$,
  'and the rest has its defaults');
SELECT isnt(kavach_create_agent(user_id => 'bob'), :'made', 'made ids differ');
SELECT is(kavach_create_agent('robot 7', 'bob'), 'robot 7', 'an agent_id need not begin with agt_');
SELECT is(kavach_create_agent(repeat('a', 255), repeat('u', 255), repeat('t', 255)), repeat('a', 255),
          'ids of 255 bytes are taken');

-- changes
SELECT code FROM kavach_authorize('agt_one', 'run', 'tool', tokens_cost => 10);
SELECT is(kavach_update_agent('agt_one', '{"user_id": "bea", "name": "Post"}'), true, 'update_agent says that it changed something');
SELECT results_eq(
  $$SELECT user_id, tenant_id, name, expires_at, metadata FROM kavach.agent WHERE agent_id = 'agt_one'$$,
  $$VALUES ('bea', 'acme', 'Post', timestamptz '2027-01-01Z', '{"team": "x"}'::jsonb)$$,
  'what is not named stays');
SELECT is(kavach_update_agent('agt_one', '{"user_id": "bea", "name": "Post"}'), false, 'nothing changed: false');
SELECT is(kavach_update_agent('agt_one', '{}'), false, 'nothing named: false');
SELECT is(kavach_update_agent('agt_one',
            '{"tenant_id": null, "name": null, "expires_at": null, "metadata": {"k": [1]}}'), true, 'a JSON null clears');
SELECT results_eq(
  $$SELECT user_id, tenant_id, name, expires_at, metadata FROM kavach.agent WHERE agent_id = 'agt_one'$$,
  $$VALUES ('bea', NULL::text, NULL::text, NULL::timestamptz, '{"k": [1]}'::jsonb)$$,
  'and leaves the others as they were');
SELECT is(kavach_update_agent('agt_one', '{"tenant_id": "brix", "expires_at": "2026-03-10T13:00:00+01:00"}'), true,
          'expires_at takes an ISO time with its zone');
SELECT is(expires_at, '2026-03-10 12:00Z', 'and means that instant') FROM kavach.agent WHERE agent_id = 'agt_one';

-- expiry is an instant: at it, the agent has expired
SELECT is(code, 'agent_expired', 'expired at expires_at') FROM kavach_authorize('agt_one', 'run', 'tool');
SET LOCAL kavach.clock = '2026-03-10 11:59:59.999999+00';
SELECT is(code, 'allowed', 'not a microsecond before') FROM kavach_authorize('agt_one', 'run', 'tool', tokens_cost => 5);
SELECT results_eq(
  $$SELECT user_id, tenant_id, tokens_cost FROM kavach.audit_log WHERE agent_id = 'agt_one' AND code = 'allowed' ORDER BY tokens_cost$$,
  $$VALUES ('bea', 'brix', 5::bigint), ('ann', 'acme', 10)$$,
  'a row keeps the owner of its time');
SELECT kavach_update_agent('agt_one', '{"expires_at": null}');

-- revoked and restored
SET LOCAL kavach.clock = '2026-03-10 14:00:00+00';
SELECT is(kavach_revoke_agent('agt_one', 'left the company'), true, 'revoke_agent revokes');
SELECT results_eq(
  $$SELECT status, status_reason, status_changed_at FROM kavach.agent WHERE agent_id = 'agt_one'$$,
  $$VALUES ('revoked', 'left the company', timestamptz '2026-03-10 14:00Z')$$,
  'and says when and why');
SET LOCAL kavach.clock = '2026-03-10 15:00:00+00';
SELECT is(kavach_revoke_agent('agt_one', 'again'), false, 'a second time there is nothing to do');
SELECT is(status_changed_at, '2026-03-10 14:00Z', 'and nothing is done') FROM kavach.agent WHERE agent_id = 'agt_one';
SELECT is(row(allowed, code)::text, '(f,agent_revoked)', 'a revoked agent is refused')
  FROM kavach_authorize('agt_one', 'run', 'tool');
SELECT is(kavach_restore_agent('agt_one'), true, 'restore_agent restores');
SELECT results_eq(
  $$SELECT status, status_changed_at FROM kavach.agent WHERE agent_id = 'agt_one'$$,
  $$VALUES ('active', timestamptz '2026-03-10 15:00Z')$$, 'and says when');
SELECT is(kavach_restore_agent('agt_one'), false, 'an active agent has nothing to restore');
SELECT is(code, 'allowed', 'a restored agent is admitted') FROM kavach_authorize('agt_one', 'run', 'tool');

-- permissions go
SELECT permission_id FROM kavach.permission WHERE agent_id = 'agt_one' \gset
SELECT is(kavach_revoke_permission(:permission_id), true, 'revoke_permission takes it away');
SELECT is(kavach_revoke_permission(:permission_id), false, 'once');
SELECT is(code, 'permission_denied', 'and the next call is refused') FROM kavach_authorize('agt_one', 'run', 'tool');

SELECT * FROM finish();
ROLLBACK;
