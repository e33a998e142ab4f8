-- setup.sql: a file that sets agents, permissions and budgets up can be run again, and changes what it says otherwise.
BEGIN;
SELECT plan(50);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';

-- A grant that is there is returned.
SELECT kavach_create_agent('agt_a', 'ann');
SELECT kavach_grant_permission('agt_a', 'mail', '{send,read}', '{"max_calls_per_hour": 2}') AS p \gset
SELECT is(kavach_grant_permission('agt_a', 'mail', '{send,read}', '{"max_calls_per_hour": 2}'), :p::bigint, 'the same grant: the same permission');
SELECT is(kavach_grant_permission('agt_a', 'mail', '{read,send,read}', '{"max_calls_per_hour": 2.0}'), :p::bigint, 'however it is written');
SELECT is(array_agg(code), '{allowed,allowed,rate_limited}', 'so that its rate is that of one') FROM generate_series(1, 3), LATERAL kavach_authorize('agt_a', 'send', 'mail', request_id => generate_series::text);
SELECT isnt(kavach_grant_permission('agt_a', 'mail', '{send}', '{"max_calls_per_hour": 2}'), :p::bigint, 'other actions: another');
SELECT isnt(kavach_grant_permission('agt_a', 'mail', '{send,read}'), :p::bigint, 'other constraints too');
SELECT isnt(kavach_grant_permission('agt_a', 'mail:x', '{send,read}', '{"max_calls_per_hour": 2}'), :p::bigint, 'another resource too');

-- A permission changed in place keeps what its rate has counted.
SELECT kavach_revoke_permission(permission_id) FROM kavach.permission WHERE agent_id = 'agt_a' AND permission_id <> :p;
SELECT is(kavach_update_permission(:p, '{"constraints": {"max_calls_per_hour": 3}}'), true, 'a permission is changed');
SELECT is(kavach_update_permission(:p, '{"constraints": {"max_calls_per_hour": 3}}'), false, 'or not');
SELECT is(array_agg(code), '{allowed,rate_limited}', 'it has counted two calls') FROM generate_series(4, 5), LATERAL kavach_authorize('agt_a', 'send', 'mail', request_id => generate_series::text);
SELECT is(kavach_update_permission(:p, '{"resource": "post", "actions": ["*"], "constraints": null}'), true, 'each of its parts');
SELECT is(row(resource, actions, constraints)::text, '(post,{*},{})', 'is changed') FROM kavach.permissions WHERE permission_id = :p;
SELECT is(code, 'allowed', 'and obeyed') FROM kavach_authorize('agt_a', 'delete', 'post');
SELECT throws_ok(format('SELECT kavach_update_permission(%s, %L)', :p, changes), state, NULL, changes)
  FROM (VALUES ('{"agent_id": "x"}', '22023'), ('{"actions": []}', '22023'), ('{"actions": "run"}', '22023'), ('{"resource": null}', '22004'), ('{"resource": 5}', '22023'),
               ('{"resource": "a*"}', '22023'), ('{"constraints": {"x": 1}}', '22023'), ('[]', '22023'), (NULL, '22004')) AS t (changes, state);
SELECT kavach_grant_permission('agt_a', 'post', '{get,put}') AS other \gset
SELECT throws_ok(format('SELECT kavach_update_permission(%s, %L)', :other, '{"actions": ["*"]}'), '23505', NULL, 'just as another one, whose rate it would add to: an error');
SELECT is(kavach_update_permission(:other, '{"actions": ["put", "get", "put"]}'), true, 'just as itself: none');
SELECT is(kavach_revoke_permission(:other), true, 'as it was');
SELECT throws_ok('SELECT kavach_update_permission(0, ''{}'')', '42704', NULL, 'an unknown permission: an error');

-- The whole file, again and again.
CREATE FUNCTION pg_temp.fingerprint() RETURNS text LANGUAGE sql AS $$
  SELECT md5(concat((SELECT string_agg(row(a, a.xmin, a.ctid)::text, ',' ORDER BY a.agent_id) FROM kavach.agent a),
                    (SELECT string_agg(row(p, p.ctid)::text, ',' ORDER BY p.permission_id) FROM kavach.permission p),
                    (SELECT string_agg(row(p, p.ctid)::text, ',' ORDER BY p.policy_id) FROM kavach.budget_policy p),
                    (SELECT string_agg(row(l, l.ctid)::text, ',' ORDER BY l::text) FROM kavach.budget_limit l)))
$$;
CREATE FUNCTION pg_temp.setup() RETURNS text LANGUAGE sql AS $$
  SELECT kavach_create_agent('agt_s', 'sue', 'acme', permissions => '[{"resource": "mail", "actions": ["send"]}, {"resource": "web", "actions": ["get"]}]', replace => true);
  SELECT kavach_grant_permission('agt_s', 'mail', '{send}');
  SELECT kavach_create_policy(user_id => 'sue', limits => '{"max_tokens_cost_per_day": 100, "max_calls_total": 9}', policy_id => 'pol_sue', replace => true);
$$;
SELECT is(pg_temp.setup(), 'pol_sue', 'set up');
SELECT code FROM kavach_authorize('agt_s', 'send', 'mail', tokens_cost => 60);
SELECT kavach_reset_policy('pol_sue');
SELECT kavach_revoke_agent('agt_s', 'by hand');
SELECT pg_temp.fingerprint() AS before, array_agg(permission_id ORDER BY resource) AS ids FROM kavach.permission WHERE agent_id = 'agt_s' \gset
SELECT is(pg_temp.setup(), 'pol_sue', 'set up again');
SELECT is(pg_temp.fingerprint(), :'before', 'no row is written');
SELECT is(status, 'revoked', 'a revoked agent stays so') FROM kavach.agents WHERE agent_id = 'agt_s';
SELECT kavach_restore_agent('agt_s');
SELECT is(kavach_create_agent('agt_s', 'sam', permissions => '[{"resource": "web", "actions": ["get"]}, {"resource": "ftp", "actions": ["get"]}]', replace => true), 'agt_s', 'other permissions');
SELECT is(array_agg(resource ORDER BY resource), '{ftp,web}', 'are exactly those') FROM kavach.permissions WHERE agent_id = 'agt_s';
SELECT is(permission_id, (:'ids'::bigint[])[2], 'what stays keeps its id') FROM kavach.permissions WHERE agent_id = 'agt_s' AND resource = 'web';
SELECT is(row(user_id, tenant_id)::text, '(sam,)', 'and what else it is told') FROM kavach.agents WHERE agent_id = 'agt_s';
SELECT kavach_create_agent('agt_s', 'sue', replace => true);
SELECT is(count(*), 2::bigint, 'without permissions they stay') FROM kavach.permissions WHERE agent_id = 'agt_s';
SELECT is(kavach_create_policy(user_id => 'sue', limits => '{"max_tokens_cost_per_day": 90}', action => 'throttle', policy_id => 'pol_sue', replace => true), 'pol_sue', 'other limits');
SELECT is(row(action, limits)::text, '(throttle,"{""max_tokens_cost_per_day"": 90}")', 'are exactly those') FROM kavach.policies WHERE policy_id = 'pol_sue';
SELECT is(array_agg(period), '{day}', 'what was forgiven stays, of a limit that does') FROM kavach.budget_baseline WHERE policy_id = 'pol_sue';
SELECT kavach_create_policy(tenant_id => 'acme', limits => '{"max_tokens_cost_per_day": 90}', policy_id => 'pol_sue', replace => true);
SELECT is(row(scope, subject, (SELECT count(*) FROM kavach.budget_baseline b WHERE b.policy_id = p.policy_id))::text, '(tenant,acme,0)', 'but not for another scope') FROM kavach.policies p WHERE policy_id = 'pol_sue';
SELECT throws_ok($$SELECT kavach_create_policy(user_id => 'x', limits => '{"max_calls_total": 9}', policy_id => 'pol_sue')$$, '23505', NULL, 'without replace: an error');
SELECT throws_ok($$SELECT kavach_create_policy(user_id => 'x', limits => '{"max_calls_total": 9}', policy_id => 'sue')$$, '22023', NULL, 'an id of another form too');
SELECT throws_ok($$SELECT kavach_create_policy(user_id => 'x', limits => '{"max_calls_total": 9}', replace => true)$$, '22023', NULL, 'and replace without an id');

-- A row that was deleted by hand leaves nothing to the next policy of its id.
SELECT kavach_create_policy(user_id => 'sue', limits => '{"max_tokens_cost_per_day": 90, "max_calls_total": 0}', policy_id => 'pol_hand');
SELECT is(kavach_reset_policy('pol_hand'), true, 'something is forgiven');
DELETE FROM kavach.budget_policy WHERE policy_id = 'pol_hand';
SELECT is(kavach_create_policy(user_id => 'sue', limits => '{"max_tokens_cost_per_day": 70}', policy_id => 'pol_hand', replace => true), 'pol_hand', 'the next of that id');
SELECT is(limits, '{"max_tokens_cost_per_day": 70}', 'has its own limits') FROM kavach.policies WHERE policy_id = 'pol_hand';
SELECT is(used, 60::numeric, 'and forgives nothing') FROM kavach.budget_status WHERE policy_id = 'pol_hand';

SELECT is(kavach_create_agent('agt_s', 'sue', permissions => '[]', replace => true), 'agt_s', 'an empty list of permissions');
SELECT is(count(*), 0::bigint, 'takes all away') FROM kavach.permissions WHERE agent_id = 'agt_s';
SELECT throws_ok($$SELECT kavach_create_agent('agt_s', 'sue')$$, '23505', NULL, 'without replace: an error');
SELECT throws_ok($$SELECT kavach_create_agent('agt_s', 'agt_s', replace => true)$$, '22023', NULL, 'with bad input as well');

SELECT throws_ok($$SELECT kavach_create_agent(user_id => 'x', replace => true)$$, '22023', NULL, 'of an agent as well');
SELECT * FROM finish();
ROLLBACK;
