-- refusal.sql: what a refused call, and a call that is an error, look like to their caller.
SET timezone = 'UTC';
SET datestyle = 'ISO, MDY';
SET kavach.clock = '2026-02-10 09:00:00+00';
\set masked 'regexp_replace(regexp_replace(reason, ''pol_[0-9a-zA-Z]+'', ''pol_...''), ''permission [0-9]+'', ''permission N'')'

SELECT kavach_create_agent('agt_mail', 'mia', 'mailco', permissions => '[
  {"resource": "smtp:out", "actions": ["send"], "constraints": {"max_calls_per_hour": 2}},
  {"resource": "smtp:in", "actions": ["read"], "constraints": {"time_window": {"start": "10:00", "end": "18:00"}}},
  {"resource": "file:*", "actions": ["*"], "constraints": {"allowed_arg_patterns": ["/tmp/*"]}},
  {"resource": "db:*", "actions": ["*"], "constraints": {"ip_allowlist": ["10.0.0.0/8", "2001:db8::/32"]}},
  {"resource": "llm:**", "actions": ["call"]}]');
SELECT kavach_create_agent('agt_bare', 'mia');
SELECT kavach_create_agent('agt_old', 'mia', expires_at => '2026-02-01Z');
SELECT kavach_create_agent('agt_gone', 'mia');
SELECT kavach_revoke_agent('agt_gone', 'key leaked');

SELECT allowed, code, :masked AS reason FROM kavach_authorize('agt_nobody', 'send', 'smtp:out');
SELECT allowed, code, :masked AS reason FROM kavach_authorize('agt_gone', 'send', 'smtp:out');
SELECT allowed, code, :masked AS reason FROM kavach_authorize('agt_old', 'send', 'smtp:out');
SELECT allowed, code, :masked AS reason FROM kavach_authorize('agt_bare', 'send', 'smtp:out');
SELECT allowed, code, :masked AS reason FROM kavach_authorize('agt_mail', 'send', 'smtp:in');
SELECT allowed, code, :masked AS reason FROM kavach_authorize('agt_mail', 'read', 'smtp:in');
SELECT allowed, code, :masked AS reason FROM kavach_authorize('agt_mail', 'read', 'file:1', arguments => '{"path": "/etc/passwd"}');
SELECT allowed, code, :masked AS reason FROM kavach_authorize('agt_mail', 'read', 'file:1');
SELECT allowed, code, :masked AS reason FROM kavach_authorize('agt_mail', 'read', 'db:1', ip => '192.0.2.1');
SELECT allowed, code, :masked AS reason FROM kavach_authorize('agt_mail', 'read', 'db:1');
SELECT allowed, code FROM kavach_authorize('agt_mail', 'send', 'smtp:out');
SELECT allowed, code FROM kavach_authorize('agt_mail', 'send', 'smtp:out');
SELECT allowed, code, :masked AS reason, retry_at FROM kavach_authorize('agt_mail', 'send', 'smtp:out');

-- Budgets, by action.
SELECT kavach_create_policy(agent_id => 'agt_mail', limits => '{"max_tokens_cost_per_day": 10}', action => 'warn') AS pol \gset
SELECT allowed, code, :masked AS reason, tokens_remaining, retry_at FROM kavach_authorize('agt_mail', 'call', 'llm:a:b', 11);
SELECT kavach_update_policy(:'pol', action => 'throttle');
SELECT allowed, code, :masked AS reason, tokens_remaining, retry_at FROM kavach_authorize('agt_mail', 'call', 'llm:a:b', 1);
SELECT kavach_update_policy(:'pol', '{"max_tokens_cost_per_day": 20, "max_calls_per_month": 3}', 'block');
SELECT allowed, code, :masked AS reason, tokens_remaining, calls_remaining, retry_at FROM kavach_authorize('agt_mail', 'call', 'llm:a:b', 1);
SELECT kavach_update_policy(:'pol', '{"max_calls_per_month": null, "max_tokens_cost_total": 12}', 'revoke');
SELECT allowed, code, :masked AS reason, tokens_remaining, retry_at FROM kavach_authorize('agt_mail', 'call', 'llm:a:b', 5, min_tokens => 2);
SELECT status, replace(status_reason, :'pol', 'pol_...') AS status_reason FROM kavach.agent WHERE agent_id = 'agt_mail';
SELECT allowed, code, :masked AS reason FROM kavach_authorize('agt_mail', 'call', 'llm:a:b', 1);
SELECT kavach_drop_policy(:'pol');

-- All of it is in the ledger.
SELECT agent_id, result, code, tokens_requested, tokens_cost FROM kavach_query_audit(user_id => 'mia') ORDER BY id;

-- Errors write nothing.
\set SHOW_CONTEXT never
SELECT kavach_create_agent('agt_mail', 'mia');
SELECT kavach_create_agent('agt_new');
SELECT kavach_create_agent('agt_new', 'agt_mail');
SELECT kavach_grant_permission('agt_mail', 'smtp:o*t', '{send}');
SELECT kavach_grant_permission('agt_mail', 'smtp:out', '{send}', '{"max_call_per_hour": 5}');
SELECT kavach_grant_permission('agt_mail', 'smtp:out', '{send}', '{"time_window": {"start": "09:00", "end": "9:00pm"}}');
SELECT kavach_grant_permission('agt_mail', 'smtp:out', '{send}', '{"ip_allowlist": ["10.0.0.1/8"]}');
SELECT kavach_create_policy(limits => '{"max_calls_total": 5}');
SELECT kavach_create_policy(user_id => 'mia', tenant_id => 'mailco', limits => '{"max_calls_total": 5}');
SELECT kavach_create_policy(user_id => 'mia', limits => '{"max_tokens_per_month": 5}');
SELECT kavach_create_policy(user_id => 'mia', limits => '{"max_calls_total": 5}', action => 'stop');
SELECT kavach_create_policy(user_id => 'mia');
SELECT kavach_update_policy('pol_none', enabled => false);
SELECT kavach_authorize('agt_bare', 'send', NULL);
SELECT kavach_authorize('agt_bare', 'send', 'smtp:out', -5);
SELECT kavach_authorize('agt_bare', 'send', 'smtp:out', 5, min_tokens => 6);
SELECT kavach_record_usage('agt_nobody', 5);
SELECT kavach_record_usage('agt_bare', 5, '01890000-0000-7000-8000-000000000000');
SELECT kavach_adjust('agt_bare', 0, 'nothing');
SELECT * FROM kavach_cost_by_agent('2026-02-01Z', '2026-01-01Z');
SELECT * FROM kavach_billing_report(2026, 13);
UPDATE kavach.audit_log_2026_02 SET tokens_cost = 0;
DELETE FROM kavach.audit_log_2026_02;
TRUNCATE kavach.audit_log_2026_02;
SELECT count(*) FROM kavach_query_audit('agt_bare');
