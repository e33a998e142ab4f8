# Client.pm: runs a client program of another language, and takes its checks over.
package Client;
use strict;
use warnings;
use FindBin;
use IPC::Run;
use Judge;
use PostgreSQL::Test::Utils;
use Test::More;

our @documents = map { "$FindBin::RealBin/../../$_" } 'README.md', 'doc/calling.md';

# A database for a program, with the agents of the documents and the role of an application.
sub make_database
{
	my ($node, $database) = @_;
	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, q{
		CREATE EXTENSION kavach;
		DO $$ BEGIN CREATE ROLE myapp LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
		SELECT kavach_grant_role('myapp', 'app');
		SELECT kavach_create_agent('agt_helper', user_id => 'ann', permissions => '[{"resource": "mcp:openai:*", "actions": ["execute"]}]');
		SELECT kavach_create_agent('agt_mailer', user_id => 'bob', permissions => '[{"resource": "smtp:*:send", "actions": ["send"], "constraints": {"allowed_arg_patterns": ["*@example.com"]}}]');
		SELECT kavach_create_policy(agent_id => 'agt_helper', limits => '{"max_tokens_cost_total": 1000}')});
	Judge::install($node, $database);
	return;
}

# The first of several commands that can run a line of its language; nothing if there is none.
sub found
{
	my ($line, @commands) = @_;
	for my $command (@commands)
	{
		return $command if eval { IPC::Run::run([ @$command, $line ], '>', \my $out, '2>', \my $err) };
	}
	return;
}

# Runs test/t/clients/PROGRAM. Each of its lines "ok NAME" and "not ok NAME" is a test, and "end" its last line.
sub run
{
	my ($node, $database, $command, $program, @arguments) = @_;
	local $ENV{PGHOST} = $node->host;
	local $ENV{PGPORT} = $node->port;
	local $ENV{PGDATABASE} = $database;
	my ($out, $err);
	my $ended = eval {
		IPC::Run::run([ @$command, "$FindBin::RealBin/clients/$program", @arguments ], '>', \$out, '2>', \$err,
			IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	};
	for my $line (split /\n/, $out // '')
	{
		next if $line eq 'end';
		my ($not, $name) = $line =~ /^(not )?ok (.*)/;
		defined $name ? ok(!$not, "$program: $name") : diag($line);
	}
	ok($ended && ($out // '') =~ /^end$/m, "$program: runs to its end") or diag($err // $@);
	return;
}

1;
