-- authorize.sql
--   The verbs that applications call, and the correction that admins make.
--   They run with the rights of the extension's owner (src/server/query.c).

CREATE FUNCTION @extschema@.kavach_authorize(
  agent_id    text,
  action      text,
  resource    text,
  tokens_cost bigint DEFAULT NULL,
  arguments   jsonb DEFAULT NULL,
  ip          inet DEFAULT NULL,
  request_id  text DEFAULT NULL,
  metadata    jsonb DEFAULT NULL,
  min_tokens  bigint DEFAULT NULL,
  OUT allowed          boolean,
  OUT code             text,
  OUT reason           text,
  OUT audit_id         uuid,
  OUT policy_id        text,
  OUT tokens_granted   bigint,
  OUT tokens_remaining bigint,
  OUT calls_remaining  bigint,
  OUT retry_at         timestamptz,
  OUT action           text,
  OUT http_status      int)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_authorize';

COMMENT ON FUNCTION @extschema@.kavach_authorize(text, text, text, bigint, jsonb, inet, text, jsonb, bigint) IS
'Decides whether an agent may do something now, charges its budgets and writes the decision into the ledger. Commit before you call the model.
agent_id, action, resource: who wants to do what, required; tokens_cost: the estimate to charge, 0 to 10^15, NULL for none (then it is refused only once a budget is used up);
arguments: a JSON object for allowed_arg_patterns; ip: for ip_allowlist; metadata: a JSON object, kept;
request_id: a key that makes retries safe: the same answer again and nothing charged; min_tokens: take less, down to this.
allowed, code, reason: the outcome, the code stable; audit_id: the ledger row, for kavach_record_usage; policy_id: the budget that decided;
tokens_granted: what was charged; tokens_remaining, calls_remaining: left under the tightest limit, of calls the permission''s rate per hour included, NULL where none applies or none was looked at; retry_at: when a refused call may fit;
action: of the policy in policy_id: warn, throttle, block or revoke; http_status: what a gateway would answer. Code budget_exceeded with action revoke: this call has revoked its agent.
A refusal is an answer, no error. Errors: 22004, 22023, 22001, 22003 bad input; KV001 a request_id used for another call.';

CREATE FUNCTION @extschema@.kavach_record_usage(
  agent_id    text,
  tokens_cost bigint,
  audit_id    uuid DEFAULT NULL,
  request_id  text DEFAULT NULL,
  metadata    jsonb DEFAULT NULL,
  OUT usage_id         uuid,
  OUT tokens_charged   bigint,
  OUT code             text,
  OUT policy_id        text,
  OUT tokens_remaining bigint,
  OUT calls_remaining  bigint)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_record_usage';

COMMENT ON FUNCTION @extschema@.kavach_record_usage(text, bigint, uuid, text, jsonb) IS
'Records what a call really spent, after the call. What is spent is recorded, past a limit and for a revoked agent too.
tokens_cost: the actual figure, 0 to 10^15; 0 releases an estimate;
audit_id: the authorization that this settles, of a dropped agent, too: the difference is charged to its user and tenant; request_id: likewise by the request_id that it was made with, else a key that makes retries safe;
metadata: a JSON object, kept.
usage_id: the ledger row; tokens_charged: what it charges, negative for a refund; code: recorded, or over_budget where a budget is used up now, policy_id naming it; tokens_remaining, calls_remaining: as for kavach_authorize.
Errors: 22004, 22023, 22001, 22003 bad input; 42704 unknown agent; KV001 a request_id that does not belong to audit_id, KV002 an audit_id that is unknown or another agent''s, KV003 usage recorded before with another figure, KV004 a refused authorization.';

CREATE FUNCTION @extschema@.kavach_check_budget(
  agent_id    text,
  tokens_cost bigint DEFAULT NULL,
  action      text DEFAULT NULL,
  resource    text DEFAULT NULL,
  arguments   jsonb DEFAULT NULL,
  ip          inet DEFAULT NULL,
  min_tokens  bigint DEFAULT NULL,
  OUT allowed          boolean,
  OUT code             text,
  OUT reason           text,
  OUT policy_id        text,
  OUT tokens_remaining bigint,
  OUT calls_remaining  bigint,
  OUT retry_at         timestamptz,
  OUT action           text,
  OUT http_status      int)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_check_budget';

COMMENT ON FUNCTION @extschema@.kavach_check_budget(text, bigint, text, text, jsonb, inet, bigint) IS
'Tells what kavach_authorize would decide now. It advises: nothing is charged, written or locked, nobody is revoked, and only kavach_authorize decides.
tokens_cost: 0 to 10^15, NULL for a call without cost; min_tokens: as for kavach_authorize;
action, resource, arguments, ip: as for kavach_authorize; without action and resource permissions are not looked at, only the agent and its budgets.
The answers are as for kavach_authorize, what remains as things stand. Code budget_exceeded with action revoke: such a call would revoke its agent.
Errors: 22004, 22023, 22001, 22003 bad input; 22004 action without resource, or the reverse, or arguments or ip without both.';

CREATE FUNCTION @extschema@.kavach_adjust(agent_id text, tokens bigint, reason text, request_id text DEFAULT NULL)
RETURNS uuid
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'kavach_adjust';

COMMENT ON FUNCTION @extschema@.kavach_adjust(text, bigint, text, text) IS
'Corrects the bill of an agent''s present user and tenant with a ledger row of kind adjustment, and returns its id.
tokens: a charge, or negative a credit, at most 10^15; it counts in the current windows; reason: required, kept;
request_id: a key that makes retries safe: the same id again and nothing charged.
Errors: 22004, 22023, 22001, 22003 bad input or a request_id used for another adjustment; 42704 unknown agent.';
