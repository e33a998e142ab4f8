# replication.pl: agents, permissions and policies arrive by logical replication, and the next call obeys them.
use strict;
use warnings;
use FindBin;
use lib $FindBin::RealBin;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Session;
use Test::More;

my %node;
for my $name (qw(publisher subscriber))
{
	$node{$name} = PostgreSQL::Test::Cluster->new($name);
	$node{$name}->init(allows_streaming => 'logical');
	$node{$name}->append_conf('postgresql.conf', "shared_preload_libraries = 'kavach'");
	$node{$name}->start;
	$node{$name}->safe_psql('postgres', 'CREATE EXTENSION kavach');
}
my ($publisher, $subscriber) = @node{qw(publisher subscriber)};
$publisher->safe_psql('postgres', q{
	SELECT kavach_create_agent('agt_a', 'ann', permissions => '[{"resource": "*", "actions": ["*"]}]');
	CREATE PUBLICATION decisions FOR TABLE kavach.agent, kavach.permission, kavach.budget_policy, kavach.budget_limit, kavach.budget_baseline});
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION decisions CONNECTION '" . $publisher->connstr . " dbname=postgres' PUBLICATION decisions");
$subscriber->wait_for_subscription_sync($publisher, 'decisions');

# Two sessions, which have looked everything up before; one is in a transaction all the time.
my @sessions = map { Session->new($subscriber) } 1 .. 2;
$sessions[1]->query('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');

sub obeyed
{
	my ($change, $answer, $name) = @_;
	$publisher->safe_psql('postgres', $change);
	$publisher->wait_for_catchup('decisions');
	is($_->query(q{SELECT code, tokens_remaining FROM kavach_authorize('agt_a', 'run', 'x', 0)}), $answer, $name) for @sessions;
	return;
}
obeyed('SELECT', 'allowed|', 'an agent that was copied');
obeyed(q{SELECT kavach_create_policy(user_id => 'ann', limits => '{"max_tokens_cost_total": 100}')}, 'allowed|100', 'a policy');
obeyed(q{SELECT kavach_update_policy(policy_id, '{"max_tokens_cost_total": 60}') FROM kavach.budget_policy}, 'allowed|60', 'a lower limit');
obeyed(q{SELECT kavach_update_policy(policy_id, '{"max_tokens_cost_total": 0}') FROM kavach.budget_policy}, 'budget_exceeded|0', 'nothing left');
obeyed(q{SELECT kavach_reset_policy(policy_id) FROM kavach.budget_policy}, 'budget_exceeded|0', 'and nothing to forgive');
obeyed(q{SELECT kavach_update_policy(policy_id, enabled => false) FROM kavach.budget_policy}, 'allowed|', 'a policy that is switched off');
obeyed(q{SELECT kavach_update_policy(policy_id, enabled => true) FROM kavach.budget_policy}, 'budget_exceeded|0', 'and on again');
obeyed(q{SELECT kavach_drop_policy(policy_id) FROM kavach.budget_policy}, 'allowed|', 'and dropped');
obeyed(q{SELECT kavach_revoke_agent('agt_a')}, 'agent_revoked|', 'a revocation');
obeyed(q{SELECT kavach_restore_agent('agt_a')}, 'allowed|', 'a restoration');
obeyed(q{SELECT kavach_revoke_permission(permission_id) FROM kavach.permission}, 'permission_denied|', 'a permission that is taken away');
obeyed(q{SELECT kavach_grant_permission('agt_a', '*', '{*}')}, 'allowed|', 'another');

# An agent goes with what names it, of the subscriber's own, too; what the publisher deletes besides is gone by then.
my $left = q{SELECT (SELECT count(*) FROM kavach.permission), (SELECT count(*) FROM kavach.budget_policy), (SELECT count(*) FROM kavach.budget_limit), (SELECT count(*) FROM kavach.budget_baseline)};
$publisher->safe_psql('postgres', q{
	SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_calls_total": 100}');
	SELECT kavach_create_policy(policy_id => 'pol_each', each => 'agent', limits => '{"max_tokens_cost_total": 100}');
	SELECT kavach_reset_policy('pol_each', 'agt_a')});
$publisher->wait_for_catchup('decisions');
$subscriber->safe_psql('postgres', q{SELECT kavach_create_policy(agent_id => 'agt_a', limits => '{"max_tokens_cost_total": 50}')});
is($subscriber->safe_psql('postgres', $left), '1|3|3|1', 'there is something to go');
obeyed(q{SELECT kavach_drop_agent('agt_a')}, 'agent_not_found|', 'an agent that is dropped');
is($_->safe_psql('postgres', $left), '0|1|1|0', 'and what names it, on the ' . $_->name) for $publisher, $subscriber;
obeyed(q{SELECT kavach_create_agent('agt_a', 'eve', permissions => '[{"resource": "*", "actions": ["*"]}]'); SELECT kavach_create_policy(agent_id => 'agt_a', policy_id => 'pol_a', limits => '{"max_tokens_cost_total": 90}')}, 'allowed|90', 'the next one of its id has its own');
obeyed(q{BEGIN; DELETE FROM kavach.agent; SELECT kavach_create_agent('agt_a', 'bob', permissions => '[{"resource": "*", "actions": ["*"]}]'); COMMIT}, 'allowed|100', 'also in one transaction');
is($subscriber->safe_psql('postgres', $left), '1|1|1|0', 'which is just that');
my $inside = pop @sessions;
$inside->query('COMMIT');	# or TRUNCATE would wait for it
$inside->quit;
obeyed('TRUNCATE kavach.permission', 'permission_denied|', 'all of them');
is($publisher->safe_psql('postgres', 'SELECT count(*) FROM kavach.audit_log'), '0', 'each has a ledger of its own');
$sessions[0]->quit;
$subscriber->stop;
$publisher->stop;
done_testing();
