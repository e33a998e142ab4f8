# Judge.pm: what holds whenever nothing is under way, for tests of what could break it.
#
#   Judge::install($node);                              # in a database that has kavach
#   is(Judge::faults($node), '', 'nothing is left');    # counters, budgets and reports agree with the ledger
#
# That there was nothing to compare is a fault, too. Where no counter is in memory, as after a restart, say so:
#   is(Judge::faults_unread($node), '', 'budgets and reports agree');
package Judge;
use strict;
use warnings;

# The sums are made here from the rows of the ledger, apart from kavach's own code.
# Policies are taken to have no baselines, and rows to be at the clock's month.
my $views = q{
CREATE VIEW charge AS
SELECT s.scope, s.subject, w.period, w.start, coalesce(tokens_cost, 0) AS tokens, (kind = 'authorize')::int AS calls
  FROM kavach.audit_log AS l
 CROSS JOIN LATERAL ( -- limits count what a settlement gives back where it was charged
   SELECT least(ts, (SELECT a.ts FROM kavach.audit_log a WHERE a.id = l.settles AND l.tokens_cost < 0)) AS at) AS counts
 CROSS JOIN LATERAL (VALUES ('agent', agent_id), ('user', user_id), ('tenant', tenant_id), ('all', NULL)) AS s (scope, subject)
 CROSS JOIN LATERAL (VALUES ('hour', date_trunc('hour', at, 'UTC')), ('day', date_trunc('day', at, 'UTC')),
                            ('month', date_trunc('month', at, 'UTC')), ('total', '-infinity')) AS w (period, start)
 WHERE result = 'allowed'
 UNION ALL
SELECT 'permission', permission_id::text, 'five_minutes', date_bin('5 minutes', ts, '2000-01-01Z'), 0, 1
  FROM kavach.audit_log WHERE result = 'allowed' AND kind = 'authorize';

CREATE VIEW usage AS
SELECT scope, subject, period, start, sum(tokens) AS tokens, sum(calls) AS calls FROM charge GROUP BY 1, 2, 3, 4;

-- How much there is to compare: zeros would agree with anything.
CREATE VIEW compared AS
SELECT 'counters' AS what, count(*) AS n FROM kavach.counters WHERE (tokens_used, calls_used) <> (0, 0)
 UNION ALL
SELECT 'budgets', count(*) FILTER (WHERE b.used <> 0) FROM kavach.budget_limit l LEFT JOIN kavach.budget_status b USING (policy_id, measure, period)
HAVING count(*) > 0
 UNION ALL
SELECT 'reports', count(*) FROM kavach.usage_by_agent WHERE tokens_cost <> 0;

CREATE VIEW fault AS
SELECT 'held: ' || concat_ws(' ', scope, subject, period, tokens_pending, calls_pending, pins) AS what
  FROM kavach.counters WHERE pins <> 0 OR tokens_pending <> 0 OR calls_pending <> 0
 UNION ALL
SELECT 'counter: ' || concat_ws(' ', c.scope, c.subject, c.period, c.tokens_used, c.calls_used, 'ledger:', u.tokens, u.calls)
  FROM kavach.counters c
  LEFT JOIN usage u ON u.scope = c.scope AND u.period = c.period AND u.start = c.period_start AND u.subject IS NOT DISTINCT FROM c.subject
 WHERE (c.tokens_used, c.calls_used) <> (coalesce(u.tokens, 0), coalesce(u.calls, 0))
 UNION ALL
SELECT 'budget: ' || concat_ws(' ', b.scope, b.subject, b.measure, b.period, b.used, 'ledger:', u.tokens, u.calls)
  FROM kavach.budget_status b
  LEFT JOIN usage u ON u.scope = b.scope AND u.period = b.period AND u.start = b.period_start AND u.subject IS NOT DISTINCT FROM b.subject
 WHERE b.used <> coalesce(CASE b.measure WHEN 'tokens' THEN u.tokens ELSE u.calls END, 0)
 UNION ALL
SELECT 'budget: no row for ' || concat_ws(' ', policy_id, measure, period)
  FROM kavach.budget_policy p JOIN kavach.budget_limit l USING (policy_id) LEFT JOIN kavach.budget_status b USING (policy_id, measure, period)
 WHERE NOT p.each AND b.used IS NULL
 UNION ALL
SELECT 'report: ' || concat_ws(' ', coalesce(r.agent_id, u.subject), r.tokens_cost, r.calls - r.denied, 'ledger:', u.tokens, u.calls)
  FROM kavach.usage_by_agent r
  FULL JOIN (SELECT * FROM usage WHERE (scope, period) = ('agent', 'total')) AS u ON u.subject = r.agent_id
 WHERE (r.tokens_cost, r.calls - r.denied) IS DISTINCT FROM (coalesce(u.tokens, 0), coalesce(u.calls, 0))
 UNION ALL
SELECT 'nothing to compare: ' || what FROM compared WHERE n = 0;

-- What a call by each agent brings into memory, and is not there.
CREATE VIEW unread AS
SELECT u.scope, u.subject, u.period, u.start
  FROM usage u
  LEFT JOIN kavach.counters c ON u.scope = c.scope AND u.period = c.period AND u.start = c.period_start AND u.subject IS NOT DISTINCT FROM c.subject
 WHERE c.tokens_used IS NULL AND u.scope <> 'permission' AND (u.scope = 'all' OR u.subject IS NOT NULL);
};

sub install
{
	my ($node, $database) = @_;
	$node->safe_psql($database // 'postgres', $views);
	return;
}

sub faults
{
	my ($node, $database) = @_;
	return $node->safe_psql($database // 'postgres', 'SELECT what FROM fault ORDER BY 1');
}

# The same, but that there need not be a counter.
sub faults_unread
{
	my ($node, $database) = @_;
	return $node->safe_psql($database // 'postgres', q{SELECT what FROM fault WHERE what <> 'nothing to compare: counters' ORDER BY 1});
}

1;
