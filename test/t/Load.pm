# Load.pm: four clients that make one call after the other, and a budget that is too small for them.
#
#   Load::prepare($node);
#   my $load = Load->new($node, 5000, 'off');    # so many calls each, with this synchronous_commit
#   $load->is_under_way;                         # each has had answers
#   $node->stop('immediate'); $node->start;
#   $load->judge($node);                         # what they were told is in the ledger, and all figures agree
#   Load::use_up($node);                         # the rest of the budget is what can be had, to the last token
package Load;
use strict;
use warnings;
use IPC::Run;
use Judge;
use PostgreSQL::Test::Utils;
use Test::More;

my $limit = 2000;
my $loads = 0;

sub prepare
{
	my ($node) = @_;
	$node->safe_psql('postgres', qq{
		CREATE EXTENSION kavach;
		SELECT kavach_create_agent('agt_' || n, 'user_' || n % 2, permissions => '[{"resource": "*", "actions": ["*"]}]') FROM generate_series(0, 4) n;
		SELECT kavach_create_policy(all_agents => true, limits => '{"max_tokens_cost_total": $limit}');
		CREATE TABLE told (id uuid, tokens bigint)});
	Judge::install($node);
	return;
}

# Calls of two tokens, each third of them released at once.
sub script
{
	my ($client, $calls, $commit) = @_;
	my $script = "SET synchronous_commit = $commit;\n";
	for my $n (1 .. $calls)
	{
		$script .= "SELECT audit_id, tokens_granted FROM kavach_authorize('agt_$client', 'run', 'x', 2, request_id => '$loads $n');\n";
		$script .= "SELECT usage_id, tokens_charged FROM kavach_record_usage('agt_$client', 0, request_id => '$loads $n');\n" if $n % 3 == 0;
	}
	return $script;
}

sub new
{
	my ($class, $node, $calls, $commit) = @_;
	my $self = bless { node => $node }, $class;
	$loads++;
	# what is there already is to stay, too
	$node->safe_psql('postgres', 'INSERT INTO told SELECT id, tokens_cost FROM kavach.audit_log WHERE id NOT IN (SELECT id FROM told)');
	for my $client (1 .. 4)
	{
		my $file = PostgreSQL::Test::Utils::tempdir() . "/load_${loads}_$client";
		append_to_file("$file.sql", script($client, $calls, $commit));
		push @{ $self->{files} }, $file;
		push @{ $self->{clients} }, IPC::Run::start([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-f', "$file.sql" ],
			'>', "$file.out", '2>', "$file.err");
	}
	return $self;
}

sub is_under_way
{
	my ($self) = @_;
	ok($self->{node}->poll_query_until('postgres', qq{SELECT count(*) = 4 FROM (SELECT FROM kavach.audit_log WHERE request_id LIKE '$loads %' GROUP BY agent_id HAVING count(*) > 50) AS a}),
		'calls are under way');
	return;
}

sub judge
{
	my ($self, $node) = @_;
	eval { $_->finish } for @{ $self->{clients} };
	unlike(join('', map { slurp_file("$_.err") } @{ $self->{files} }), qr/ERROR/, 'no call has failed');
	$node->safe_psql('postgres', join("\n", map { "\\copy told FROM '$_.out' (DELIMITER '|')" } @{ $self->{files} }));
	is($node->safe_psql('postgres', 'SELECT t.* FROM told t LEFT JOIN kavach.audit_log l USING (id) WHERE l.tokens_cost IS DISTINCT FROM t.tokens'),
		'', 'what was acknowledged is in the ledger');
	cmp_ok($node->safe_psql('postgres', 'SELECT count(*) FROM kavach.audit_log WHERE id NOT IN (SELECT id FROM told)'), '<=', 4,
		'and nothing besides, but for a call each that was under way');
	figures_agree($node);
	return;
}

sub figures_agree
{
	my ($node) = @_;
	# first where the counters may have to be read yet, then with all of them in memory
	for my $read (0, 1)
	{
		$node->safe_psql('postgres', q{SELECT count(kavach_authorize('agt_' || n, 'run', 'x', 0)) FROM generate_series(0, 4) n}) if $read;
		is($node->safe_psql('postgres', 'SELECT * FROM unread'), '', 'all that was used is in memory') if $read;
		is($read ? Judge::faults($node) : Judge::faults_unread($node), '', 'counters, budgets and usage by agent are what the ledger says');
		is($node->safe_psql('postgres', qq{
			SELECT count(DISTINCT n), max(n) <= $limit FROM (
			  SELECT sum(tokens_cost) FROM kavach.audit_log
			   UNION ALL SELECT $limit - tokens_remaining FROM kavach_check_budget('agt_0')
			   UNION ALL SELECT sum(tokens_cost) FROM kavach_cost_by_agent(NULL, NULL)
			   UNION ALL SELECT sum(tokens_cost) FROM kavach_cost_by_user(NULL, NULL)
			   UNION ALL SELECT sum(tokens_cost) FROM kavach_cost_by_day(NULL, NULL, NULL)
			   UNION ALL SELECT sum(tokens_cost) FROM kavach_billing_report(2026, 3)) AS f (n)}),
			'1|t', 'and so are all other figures; the limit is not passed');
	}
	return;
}

sub use_up
{
	my ($node) = @_;
	$node->safe_psql('postgres', q{SELECT kavach_adjust('agt_0', -3, 'for there to be some')});
	my $left = $limit - $node->safe_psql('postgres', 'SELECT sum(tokens_cost) FROM kavach.audit_log');
	my $ask = sub { "SELECT code, tokens_remaining FROM kavach_authorize('agt_0', 'run', 'x', $_[0])" };
	is($node->safe_psql('postgres', $ask->($left + 1)), "budget_exceeded|$left", 'more than the rest is refused');
	is($node->safe_psql('postgres', $ask->($left)), 'allowed|0', 'and the rest admitted');
	figures_agree($node);
	return;
}

1;
