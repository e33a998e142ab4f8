-- permissions.sql: which resources and actions a permission covers, and which one admits.
BEGIN;
SELECT plan(44);
SET LOCAL timezone = 'UTC';
SET LOCAL kavach.clock = '2026-03-10 12:00:00+00';
-- The row of an answer, as a snapshot later than the call's sees it.
CREATE FUNCTION pg_temp.row_of(uuid) RETURNS SETOF kavach.audit_log LANGUAGE sql AS 'SELECT * FROM kavach.audit_log WHERE id = $1';

-- Each pattern has an agent of its own, so that nothing else can admit.
CREATE FUNCTION pg_temp.covers(pattern text, resource text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE agent text := kavach_create_agent(user_id => 'ann');
BEGIN
  PERFORM kavach_grant_permission(agent, pattern, '{run}');
  RETURN (SELECT code FROM kavach_authorize(agent, 'run', covers.resource));
END $$;

SELECT is(pg_temp.covers(pattern, resource), CASE WHEN covered THEN 'allowed' ELSE 'permission_denied' END,
          format('%s %s %s', pattern, CASE WHEN covered THEN 'covers' ELSE 'does not cover' END, resource))
  FROM (VALUES
    ('mcp:openai:chat', 'mcp:openai:chat',    true),
    ('mcp:openai:chat', 'mcp:openai:chat2',   false),
    ('mcp:openai:chat', 'mcp:openai',         false),
    ('mcp:openai:chat', 'mcp:openai:chat:x',  false),
    ('mcp:openai:chat', 'MCP:openai:chat',    false),
    ('mcp:openai:chat', '*',                  false),
    ('mcp:openai:chat', 'mcp:*:chat',         false),
    ('mcp:openai:chat', '**',                 false),
    ('mcp:*:chat',      'mcp:openai:chat',    true),
    ('mcp:*:chat',      'mcp:a:b:chat',       false),
    ('mcp:*:chat',      'mcp:chat',           false),
    ('mcp:*:chat',      'mcp:openai:talk',    false),
    ('mcp:*',           'mcp:openai',         true),
    ('mcp:*',           'mcp:openai:chat',    false),
    ('mcp:*',           'mcp',                false),
    ('*:chat',          'openai:chat',        true),
    ('*:chat',          'mcp:openai:chat',    false),
    ('*',               'mcp',                true),
    ('*',               'mcp:openai:chat',    true),
    ('**',              'mcp:openai:chat',    true),
    ('mcp:**',          'mcp:openai',         true),
    ('mcp:**',          'mcp:openai:chat:v1', true),
    ('mcp:**',          'mcp',                false),
    ('mcp:**',          'mcpx:openai',        false),
    ('mcp:*:**',        'mcp:openai:chat',    true),
    ('mcp:*:**',        'mcp:openai',         false),
    ('file_x:50%',      'file_x:50%',         true),
    ('file_x:50%',      'fileax:500',         false),
    ('a.c:[b]',         'abc:b',              false),
    ('db:größe',        'db:größe',           true)
  ) AS t (pattern, resource, covered);

-- actions
SELECT kavach_create_agent('agt_act', 'ann', permissions =>
  '[{"resource": "doc:*", "actions": ["read", "list"]}, {"resource": "own:*", "actions": ["*"]}]');
SELECT is(code, expected, t.action || ' ' || t.resource)
  FROM (VALUES ('read', 'doc:1', 'allowed'), ('list', 'doc:1', 'allowed'), ('write', 'doc:1', 'permission_denied'),
               ('READ', 'doc:1', 'permission_denied'), ('*', 'doc:1', 'permission_denied'),
               ('write', 'own:1', 'allowed'), ('write', 'else:1', 'permission_denied')) AS t (action, resource, expected),
       kavach_authorize('agt_act', t.action, t.resource);

-- Several permissions, tried in the order of their ids: the first that passes admits.
SELECT kavach_create_agent('agt_many', 'ann');
SELECT kavach_grant_permission('agt_many', 'x:1', '{run}', '{"ip_allowlist": ["10.0.0.0/8"]}') AS p1,
       kavach_grant_permission('agt_many', 'x:*', '{run}') AS p2,
       kavach_grant_permission('agt_many', '**', '{run}') AS p3 \gset
SELECT cmp_ok(:p1, '<', :p2, 'permission ids grow');
SELECT is(l.permission_id, :p1::bigint, 'the first admits where it passes')
  FROM kavach_authorize('agt_many', 'run', 'x:1', ip => '10.1.1.1') a, pg_temp.row_of(a.audit_id) AS l;
SELECT is(l.permission_id, :p2::bigint, 'the next where the first does not')
  FROM kavach_authorize('agt_many', 'run', 'x:1') a, pg_temp.row_of(a.audit_id) AS l;
SELECT is(l.permission_id, :p3::bigint, 'the last where only it matches')
  FROM kavach_authorize('agt_many', 'run', 'y:1') a, pg_temp.row_of(a.audit_id) AS l;

-- Where none passes, the first matching one's code answers.
SELECT kavach_create_agent('agt_none', 'ann');
SELECT kavach_grant_permission('agt_none', 'other', '{run}', '{"allowed_arg_patterns": ["ok"]}'),
       kavach_grant_permission('agt_none', 'x:*', '{run}', '{"time_window": {"start": "01:00", "end": "02:00"}}'),
       kavach_grant_permission('agt_none', 'x:1', '{run}', '{"ip_allowlist": ["10.0.0.0/8"]}');
SELECT is(row(a.allowed, a.code, l.result, l.permission_id)::text, '(f,outside_time_window,denied,)',
          'the first matching one answers, not the first one')
  FROM kavach_authorize('agt_none', 'run', 'x:1') a, pg_temp.row_of(a.audit_id) AS l;
SELECT is(code, 'permission_denied', 'where none matches: permission_denied') FROM kavach_authorize('agt_none', 'run', 'z');
SELECT is(code, 'allowed', 'one that passes is enough') FROM kavach_authorize('agt_none', 'run', 'x:1', ip => '10.0.0.1');

SELECT * FROM finish();
ROLLBACK;
